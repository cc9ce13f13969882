"""Compiles every bucket of every step ahead, and counts what was compiled too late.

Executables come from JAX's persistent cache when it has them. The first buckets are compiled before the engine
answers, the rest in a background thread; a step that needs a bucket that is not there yet waits for just that one.
Once everything is compiled, another compilation is a bug: it is counted (`num_late`) and logged.
"""

from __future__ import annotations

import atexit
import collections
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax

from sgjax.config import cache_dir

_logger = logging.getLogger(__name__)


def use_persistent_cache(folder: str | None) -> None:
    """Points JAX's compile cache at `folder` (default: under the sgjax cache folder), for all of this process."""
    jax.config.update("jax_compilation_cache_dir", folder or str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class StepCompiler:
    """Executables by key.

    Args:
      compile_key: lowers and compiles one key. Called by one thread at a time per key.
    """

    def __init__(self, compile_key: Callable[[Hashable], Any]):
        self._compile_key = compile_key
        self._ready: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._guard = threading.Lock()
        self._background: threading.Thread | None = None
        self._stop = threading.Event()
        self.complete = False
        self.failure: BaseException | None = None
        self.num_late = 0
        self._waited_s = 0.0
        self._waits_since_s: float | None = None

    @property
    def num_by_kind(self) -> dict[str, int]:
        """How many keys of each type are compiled: {"forward": 40, "sample": 12, ...}."""
        kinds = collections.Counter(type(key).__name__.removesuffix("Key").lower() for key in list(self._ready))
        return dict(sorted(kinds.items()))

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    def get(self, key: Hashable) -> Any:
        """The executable of a key; compiles it now when it is not there."""
        found = self._ready.get(key)
        if found is not None:
            return found
        self._waits_since_s = time.monotonic()
        try:
            return self._compile_late(key)
        finally:
            self._waited_s, self._waits_since_s = self.waited_s, None

    def is_pending(self, key: Hashable) -> bool:
        """Whether the background thread has yet to compile a key."""
        at_work = self._background is not None and self._background.is_alive()
        return at_work and key not in self._ready

    @property
    def waited_s(self) -> float:
        """How long steps have waited for executables in all, the one that waits now included."""
        since_s = self._waits_since_s
        return self._waited_s + (0.0 if since_s is None else time.monotonic() - since_s)

    def _compile_late(self, key: Hashable) -> Any:
        if self.complete:
            self.num_late += 1
            _logger.warning("compiling while serving: %s was not among the buckets", key)
        return self._compile_once(key)

    def _compile_once(self, key: Hashable) -> Any:
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._ready:
                self._ready[key] = self._compile_key(key)
            return self._ready[key]

    def warm_up(
        self, first: Iterable[Hashable], rest: Iterable[Hashable], on_progress: Callable[[str, float], None]
    ) -> None:
        """Compiles `first` now and `rest` in the background; `on_progress(label, fraction of first)`."""
        first = list(first)
        for i, key in enumerate(first):
            on_progress(f"compiling {key}", i / len(first))
            self._compile_once(key)
        on_progress("compiled the first buckets", 1.0)
        self._background = threading.Thread(target=self._compile_rest, args=(list(rest),), name="sgjax-compile")
        self._background.daemon = True
        self._background.start()
        # The interpreter must not go away under XLA's compiler, so an exit waits for the key at hand.
        atexit.register(_stop_and_join, self._stop, self._background)

    def _compile_rest(self, keys: list[Hashable]) -> None:
        try:
            for key in keys:
                if self._stop.is_set():
                    return
                self._compile_once(key)
            self.complete = True
            _logger.info("all %d steps are compiled", self.num_ready)
        except Exception as error:  # raised by wait(), and again by the step that needs this key
            self.failure = error
            _logger.exception("compiling in the background failed")

    def wait(self) -> None:
        """Until every bucket is compiled. Raises what the background thread raised."""
        if self._background is not None:
            self._background.join()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stops the background thread after the key that it is at, without waiting for that."""
        self._stop.set()


def _stop_and_join(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
