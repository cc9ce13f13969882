"""The engine's life inside a server: loading in a thread while the port already answers, ready, failed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sgjax_server.errors import ApiError
from sgjax_server.tokens import TokenTexts

if TYPE_CHECKING:
    from sgjax_server.engine_api import ServedEngine

Progress = Callable[[str, float], None]
"""Called as (what is being done, share of it that is done)."""


class EngineHost:
    """Holds the engine of one server process.

    Attributes:
      loaded: done when the engine is there or could not be made.
    """

    def __init__(self, engine: ServedEngine | None = None):
        self.loaded: Future[ServedEngine] = Future()
        self._stage = ("starting", 0.0)
        if engine is not None:
            self.loaded.set_result(engine)

    def start(self, load: Callable[[Progress], ServedEngine], on_progress: Progress) -> None:
        """Loads the engine in a thread, with `load(report)`."""

        def report(stage: str, fraction: float) -> None:
            self._stage = (stage, fraction)
            on_progress(stage, fraction)

        def run() -> None:
            try:
                self.loaded.set_result(load(report))
            except BaseException as error:
                self.loaded.set_exception(error)

        threading.Thread(target=run, name="engine-load", daemon=True).start()

    @property
    def engine(self) -> ServedEngine:
        """The engine, when it can take requests.

        Raises:
          ApiError: 503, while it is loading and after it has failed.
        """
        status = self.status()
        if status["status"] == "ready":
            return self.loaded.result()
        if status["status"] == "loading":
            raise ApiError(503, f"the model is loading: {status['stage']}", code="loading")
        raise ApiError(503, f"the engine has failed: {status['message']}", code="engine_failed")

    @functools.cached_property
    def token_texts(self) -> TokenTexts:
        """Texts of single tokens, remembered."""
        return TokenTexts(self.engine.tokenizer)

    def status(self) -> dict[str, Any]:
        """What `/health` reports; its `status` is "ready", "loading" or "failed"."""
        if not self.loaded.done():
            stage, fraction = self._stage
            return {"status": "loading", "stage": stage, "progress": round(fraction, 3)}
        if (error := self.loaded.exception()) is not None:
            return {"status": "failed", "message": str(error)}
        engine = self.loaded.result()
        if not engine.is_alive:
            return {"status": "failed", "message": str(engine.failure or "it was closed")}
        return {"status": "ready"}

    def close(self) -> None:
        if self.loaded.done() and self.loaded.exception() is None:
            self.loaded.result().close()
