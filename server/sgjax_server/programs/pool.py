"""How many programs run at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sgjax_server.errors import ApiError
from sgjax_server.programs.run import ProgramCall, ProgramRun

if TYPE_CHECKING:
    from sgjax_server.engine_api import ServedEngine


class ProgramPool:
    """Starts programs, each in threads of its own, as long as fewer than `size` are running."""

    def __init__(self, size: int):
        self._size = size
        self._num_running = 0
        self._lock = threading.Lock()

    @property
    def num_running(self) -> int:
        """Programs of which some thread is still at work."""
        return self._num_running

    def start(self, engine: ServedEngine, call: ProgramCall) -> ProgramRun:
        """Starts a program, in the running event loop.

        Raises:
          ApiError: 429, too many are running.
        """
        with self._lock:
            if self._num_running >= self._size:
                raise ApiError(429, f"{self._num_running} programs are running, the limit", code="too_many_programs")
            self._num_running += 1
        try:
            return ProgramRun(engine, call, self._ended)
        except BaseException:  # no thread can be had
            self._ended()
            raise

    def _ended(self) -> None:
        with self._lock:
            self._num_running -= 1
