"""Generators that are still open when a script ends."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator


def closed_at_exit[T](generator: Generator[T]) -> Generator[T]:
    """The same generator; one that is open when the interpreter exits is closed while its `finally` can still work."""
    weakref.finalize(generator, _close, weakref.ref(generator))
    return generator


def _close(generator: weakref.ref[Generator]) -> None:
    if (still_open := generator()) is not None:
        with contextlib.suppress(ValueError):  # another thread is reading it
            still_open.close()
