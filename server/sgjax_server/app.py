"""The HTTP application: routes over one engine, which may still be loading."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

from fastapi import FastAPI
from pydantic_core import to_json

from sgjax import __version__
from sgjax_server.chat.model_format import ModelFormat
from sgjax_server.config import ServerConfig
from sgjax_server.docs_page import docs_page
from sgjax_server.errors import add_error_handlers
from sgjax_server.host import EngineHost
from sgjax_server.live_feed import LiveFeed
from sgjax_server.middleware.http_metrics import HttpMetrics
from sgjax_server.middleware.request_log import RequestLog
from sgjax_server.middleware.stack import middleware_stack
from sgjax_server.openapi import openapi_document
from sgjax_server.programs.pool import ProgramPool
from sgjax_server.responses.store import ResponseStore
from sgjax_server.routes import (
    anthropic,
    chat,
    completions,
    control,
    docs,
    generate,
    health,
    info,
    live,
    load,
    logs,
    metrics,
    models,
    ollama,
    ollama_models,
    page,
    parse,
    program,
    responses,
    score,
    sessions,
    tokenize,
    unserved,
)
from sgjax_server.sessions import SessionStore
from sgjax_server.shared import Shared
from sgjax_server.tracing import start_tracing

# Those asked for most come first: a request is compared with one route after the other.
_ROUTES = (
    *(chat, completions, generate, responses, anthropic, ollama),
    *(program, sessions, tokenize, score, parse, unserved),
    *(health, info, load, metrics, models, ollama_models, control, logs),
    *(page, docs, live),
)


def create_app(host: EngineHost, config: ServerConfig, shared: Shared | None = None) -> FastAPI:
    """The ASGI application. Routes that need the engine answer 503 until `host` has it.

    The engine is closed when the application shuts down.

    Args:
      shared: with other processes that serve the same clients; None where there are none.
    """
    shared = shared or Shared.alone()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        host.close()
        for work in (background := list(app.state.background)):
            work.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        shared.database.close()
        if traces is not None:
            await asyncio.to_thread(traces.shutdown)

    request_log = RequestLog(config.log_requests)
    http_metrics = HttpMetrics(shared.metrics_folder)
    traces = None if config.otlp_endpoint is None else start_tracing(config.otlp_endpoint)
    app = FastAPI(
        title="sgjax",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # routes/docs.py has it, and a page; FastAPI's runs scripts from elsewhere
        middleware=middleware_stack(config, request_log, http_metrics, traces),
    )
    app.state.host = host
    app.state.config = config
    app.state.request_log = request_log
    app.state.http_metrics = http_metrics
    app.state.programs = ProgramPool(config.max_running_programs)
    app.state.model_format = functools.cache(lambda: ModelFormat.of(host.engine.tokenizer, config))
    app.state.shared = shared
    app.state.sessions = SessionStore(
        shared.database,
        shared.worker,
        max_sessions=config.max_sessions,
        max_tokens=config.max_session_tokens,
        idle_s=config.session_timeout_s,
    )
    app.state.live = LiveFeed(host)
    app.state.responses = ResponseStore(
        shared.database,
        shared.worker,
        max_responses=config.max_stored_responses,
        max_bytes=config.max_stored_response_bytes,
    )
    app.state.background = set()
    app.state.started_s = shared.started_s
    add_error_handlers(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.include_router(unserved.control)
    app.openapi = functools.cache(lambda: openapi_document(app))
    app.state.openapi_json = functools.cache(lambda: to_json(app.openapi()))
    app.state.docs_page = functools.cache(lambda: docs_page(app.openapi()))
    return app
