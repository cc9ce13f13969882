"""What executors queue, and what forks start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sgjax.lang.transcript import Transcript


class Failure(NamedTuple):
    """In place of a value that a fork failed to give."""

    error: BaseException


class Task(NamedTuple):
    """One step.

    Attributes:
      run: raises when it fails.
      what: names it in errors.
      sets: variables that have their values afterwards.
      is_instant: it waits for nothing.
      abandon: called instead of `run` when it never will be.
    """

    run: Callable[[], None]
    what: str
    sets: tuple[str, ...] = ()
    is_instant: bool = False
    abandon: Callable[[BaseException], None] | None = None


class Snapshot(NamedTuple):
    """A state at one moment: what a fork starts from."""

    transcript: Transcript
    variables: dict[str, Any]
    meta_info: dict[str, Any]
