"""What uvicorn is told: which application, over what transport, and how patiently."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sgjax_server.config import ServerConfig


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
        "timeout_graceful_shutdown": config.drain_timeout,
        "server_header": False,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_keyfile_password": config.ssl_keyfile_password,
    }
    return uvicorn.Config(app, **(chosen | options))


def _protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which alone would wait for ever for the rest of a request's head."""

    class Protocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_head()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(head_timeout_s, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
