"""What uvicorn is told: which application, over what transport, and how patiently."""

from __future__ import annotations

from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sgjax_server.config import ServerConfig

# A stream that is still going when the server is told to stop gets this long.
_SHUTDOWN_S = 5


def uvicorn_options(config: ServerConfig, app: ASGIApp, **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration for the application. Raises ssl.SSLError, OSError for a bad certificate or key.

    Args:
      options: of uvicorn, which win.
    """
    chosen = {
        "log_config": None,
        "access_log": config.log_level == "debug",
        "ws": "none",
        "timeout_graceful_shutdown": _SHUTDOWN_S,
        "server_header": False,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_keyfile_password": config.ssl_keyfile_password,
    }
    return uvicorn.Config(app, **(chosen | options))
