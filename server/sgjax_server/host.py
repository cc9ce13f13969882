"""The engine's life inside a server: loading in a thread while the port already answers, ready, failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sgjax_server.errors import ApiError

if TYPE_CHECKING:
    from sgjax.engine import Engine

Progress = Callable[[str, float], None]
"""Called as (what is being done, share of it that is done)."""


class EngineHost:
    """Holds the engine of one server process.

    Attributes:
      load_error: why loading failed, else None.
    """

    def __init__(self, engine: Engine | None = None):
        self._engine = engine
        self._thread: threading.Thread | None = None
        self._stage = ("starting", 0.0)
        self.load_error: BaseException | None = None

    def start(self, load: Callable[[Progress], Engine], on_progress: Progress, on_done: Callable[[], None]) -> None:
        """Loads the engine in a thread; `on_done` is called there, whether it worked or not."""

        def report(stage: str, fraction: float) -> None:
            self._stage = (stage, fraction)
            on_progress(stage, fraction)

        def run() -> None:
            try:
                self._engine = load(report)
            except BaseException as error:
                self.load_error = error
            on_done()

        self._thread = threading.Thread(target=run, name="engine-load", daemon=True)
        self._thread.start()

    @property
    def is_loading(self) -> bool:
        return self._engine is None and self.load_error is None

    @property
    def engine(self) -> Engine:
        """The engine, when it can take requests.

        Raises:
          ApiError: 503, while it is loading and after it has failed.
        """
        if self._engine is None:
            raise ApiError(503, f"the model is loading: {self._stage[0]}", code="loading")
        if not self._engine.is_alive:
            raise ApiError(503, f"the engine has failed: {self._engine.failure}", code="engine_failed")
        return self._engine

    def status(self) -> dict[str, Any]:
        """What `/health` reports; its `status` is "ready", "loading" or "failed"."""
        if self._engine is None:
            if self.load_error is not None:
                return {"status": "failed", "message": str(self.load_error)}
            stage, fraction = self._stage
            return {"status": "loading", "stage": stage, "progress": round(fraction, 3)}
        if not self._engine.is_alive:
            return {"status": "failed", "message": str(self._engine.failure)}
        return {"status": "ready"}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
