"""What a route needs of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic_core import to_json

from sgjax.types import RequestError
from sgjax_server.chat.model_format import ModelFormat
from sgjax_server.config import ServerConfig
from sgjax_server.errors import ApiError
from sgjax_server.host import EngineHost
from sgjax_server.middleware.request_log import RequestRecord
from sgjax_server.responses.store import ResponseStore
from sgjax_server.sampling_defaults import sampling_defaults
from sgjax_server.sessions import SessionStore
from sgjax_server.tokens import TokenTexts

if TYPE_CHECKING:
    from sgjax.engine import EngineStats
    from sgjax_server.engine_api import ServedEngine

ENGINE_TIMEOUT_S = 2.0
"""How long who asks about the engine waits for its word."""


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
        self.sessions: SessionStore = state.sessions
        self.responses: ResponseStore = state.responses
        self.background: set[asyncio.Task[None]] = state.background
        self.started_s: int = state.started_s
        self.record: RequestRecord = request.state.record
        self.receive = request.receive

    async def stats(self) -> EngineStats:
        """What the engine says of itself.

        Raises:
          ApiError: 503, it says nothing for `ENGINE_TIMEOUT_S`, as when its process is stopped.
        """
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                return await self.engine.stats_now()
        except TimeoutError:
            message = f"the engine has not answered for {ENGINE_TIMEOUT_S:g} s"
            raise ApiError(503, message, code="engine_silent") from None

    def decode(self, token_ids: Sequence[int], field: str, *, skip_special_tokens: bool) -> str:
        """The text of ids that a request's `field` holds. Raises RequestError for one outside the vocabulary."""
        if any(not 0 <= token_id < self.engine.info.vocab_size for token_id in token_ids):
            raise RequestError(field, "holds a token id outside the vocabulary")
        return self.engine.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

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


def json_response(data: Any, status: int = 200) -> Response:
    return Response(to_json(data, inf_nan_mode="null"), status, media_type="application/json")
