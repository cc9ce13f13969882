"""What uvicorn is told: which application, over what transport, and how patiently."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from sgjax_server import direct_write
from sgjax_server.config import ServerConfig

_MAX_HEAD_BYTES = 64 * 1024
_MAX_UNANSWERED = 8  # requests of a connection, beyond which it is not read until one is answered
# Requests that draining leaves unfinished are told so; this is for their answers to get out.
_LAST_WORDS_S = 3


def uvicorn_options(config: ServerConfig, app: ASGIApp, **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration for the application.

    Args:
      options: of uvicorn, which win.
    """
    chosen = {
        "log_config": None,
        "access_log": config.log_level == "debug",
        "http": _protocol(config.request_body_timeout_s),
        "ws": "none",
        "timeout_graceful_shutdown": config.drain_timeout + _LAST_WORDS_S,
        "server_header": False,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_keyfile_password": config.ssl_keyfile_password,
    }
    return uvicorn.Config(app, **(chosen | options))


def _protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which alone would wait for ever for the rest of a request's head, and gather any amount.

    Nor would it notice that a client leaves which has sent another request before the answer to the one at work.
    """

    class Protocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        # Bytes taken in since a head was complete or a piece of a body came: of a head, or of trailers.
        _num_pending = 0
        _unanswered: tuple[RequestResponseCycle, ...] = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            self._num_pending += len(data)
            super().data_received(data)
            # Asked afterwards, since only the parser knows where a head ends: one that comes whole may be longer.
            if self._num_pending > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_head()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            self._num_pending = 0
            super().on_headers_complete()
            direct_write.offer(self.cycle)  # in time: the application is started, and runs later
            self._unanswered = (*(cycle for cycle in self._unanswered if not cycle.response_complete), self.cycle)
            if 1 < len(self._unanswered) <= _MAX_UNANSWERED:
                self.flow.resume_reading()  # who does not read does not hear of the end either

        def on_body(self, body: bytes) -> None:
            self._num_pending = 0
            super().on_body(body)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            for cycle in self._unanswered:
                cycle.disconnected = not cycle.response_complete
                cycle.message_event.set()
            super().connection_lost(exc)

        def _refuse_head(self) -> None:
            if self.cycle is None or self.cycle.response_complete:  # else it would be in the middle of an answer
                self.transport.write(STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

        def _await_head(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(head_timeout_s, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
