"""What every test of the language asserts: no thread of a program outlives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest


def program_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sgjax-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(program_threads())
    yield
    deadline = time.monotonic() + 5
    while left := [thread for thread in program_threads() if thread not in before]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        left[0].join(0.1)
