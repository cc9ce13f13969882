"""A real server on a free port, for a test."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.local_engine import LocalEngine

import sgjax


@contextlib.contextmanager
def served_app(app: FastAPI) -> Iterator[str]:
    """The URL of a server in a thread. Its end is the application's, which closes its engine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def served(engine: sgjax.Engine) -> contextlib.AbstractContextManager[str]:
    """The URL of a server over an engine, which it closes."""
    return served_app(create_app(EngineHost(LocalEngine(engine)), ServerConfig()))
