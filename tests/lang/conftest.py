"""What every test of the language asserts: no thread of a program outlives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

import sgjax

from ..engine.conftest import tiny_model as tiny_model
from ..engine.conftest import tiny_settings as tiny_settings

PREFIXES = ("sgjax-program", "sgjax-batch")


def program_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(PREFIXES)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(program_threads())
    yield
    deadline = time.monotonic() + 5
    while left := [thread for thread in program_threads() if thread not in before]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        left[0].join(0.1)


@pytest.fixture(scope="session")
def shared_engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine
        engine.check()


@pytest.fixture
def engine(shared_engine: sgjax.Engine) -> sgjax.Engine:
    """A tiny engine whose cache is empty."""
    shared_engine.flush_cache()
    return shared_engine
