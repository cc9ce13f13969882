"""What a route needs of the application."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic_core import to_json

from sgjax_server.chat.model_format import ModelFormat
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.in_flight import TokensInFlight
from sgjax_server.middleware.request_log import RequestRecord
from sgjax_server.sampling_defaults import sampling_defaults
from sgjax_server.tokens import TokenTexts

if TYPE_CHECKING:
    from sgjax_server.engine_api import ServedEngine


class Context:
    """One request's view of the application: the engine, which is ready, and the settings.

    Raises:
      ApiError: 503, the engine is loading or has failed.
    """

    def __init__(self, request: Request):
        state = request.app.state
        self._host: EngineHost = state.host
        self.engine: ServedEngine = self._host.engine
        self.server_config: ServerConfig = state.config
        self.model_name: str = self.server_config.served_model_name or self.engine.info.model_name
        self._model_format: Callable[[], ModelFormat] = state.model_format
        self.started_s: int = state.started_s
        self.in_flight: TokensInFlight = state.in_flight
        self.record: RequestRecord = request.state.record
        self.receive = request.receive

    @property
    def model_format(self) -> ModelFormat:
        """How the model writes calls of tools and reasoning."""
        return self._model_format()

    @property
    def stream_interval(self) -> int:
        return self.server_config.stream_interval

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        return sampling_defaults(self.engine.info.generation_defaults)

    @property
    def token_texts(self) -> TokenTexts:
        return self._host.token_texts


async def _context(request: Request) -> Context:
    return Context(request)


ContextDep = Annotated[Context, Depends(_context)]


def json_response(data: Any) -> Response:
    return Response(to_json(data, inf_nan_mode="null"), media_type="application/json")
