"""The engine's life as seen by the service: loading while the port already answers, ready, restarting, failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgjax_server.errors import ApiError
from sgjax_server.tokens import TokenTexts

if TYPE_CHECKING:
    from sgjax_server.engine_api import ServedEngine


class EngineHost:
    """Holds the engine that routes use now.

    Args:
      engine: owned by this object from now on; None is one that is still loading.
    """

    def __init__(self, engine: ServedEngine | None = None):
        self._engine = engine
        self._token_texts: TokenTexts | None = None
        self._status: dict[str, Any] = {"status": "loading", "stage": "starting", "progress": 0.0}

    def set_loading(self, stage: str, progress: float) -> None:
        self._status = {"status": "loading", "stage": stage, "progress": round(progress, 3)}

    def set_ready(self, engine: ServedEngine) -> None:
        """Requests go to `engine` from now on; one before it is closed."""
        self.close()
        self._engine = engine
        self._token_texts = None

    def set_down(self, status: str, message: str) -> None:
        """There is no engine. `status`: "restarting" when another is on its way, "failed" when not."""
        self.close()
        self._status = {"status": status, "message": message}

    @property
    def engine(self) -> ServedEngine:
        """The engine, when it can take requests.

        Raises:
          ApiError: 503, while it is loading and after it has failed.
        """
        status = self.status()
        match status["status"]:
            case "ready":
                assert self._engine is not None
                return self._engine
            case "loading":
                raise ApiError(503, f"the model is loading: {status['stage']}", code="loading")
            case "restarting":
                raise ApiError(503, f"the engine is being restarted: {status['message']}", code="restarting")
            case _:
                raise ApiError(503, f"the engine has failed: {status['message']}", code="engine_failed")

    @property
    def token_texts(self) -> TokenTexts:
        """Texts of single tokens, remembered."""
        if self._token_texts is None:
            self._token_texts = TokenTexts(self.engine.tokenizer)
        return self._token_texts

    def status(self) -> dict[str, Any]:
        """What `/health` reports; its `status` is "ready", "loading", "restarting" or "failed"."""
        if self._engine is None:
            return self._status
        if not self._engine.is_alive:
            return {"status": "failed", "message": str(self._engine.failure or "it was closed")}
        return {"status": "ready"}

    def close(self) -> None:
        """Closes the engine, if there is one. Its open requests get an EngineError."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
