"""The ASGI middleware of the application, in order.

Plain ASGI throughout: what only reads the request passes `send` on as it is, and costs a streamed token nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from sgjax_server.config import ServerConfig
from sgjax_server.middleware.access import RequireApiKey
from sgjax_server.middleware.body import ReadBody
from sgjax_server.middleware.http_metrics import CountRequests, HttpMetrics
from sgjax_server.middleware.request_log import LogRequests, RequestLog
from sgjax_server.middleware.timeout import LimitTime

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def middleware_stack(
    config: ServerConfig, request_log: RequestLog, http_metrics: HttpMetrics, traces: TracerProvider | None
) -> list[Middleware]:
    """Outermost first."""
    stack = [Middleware(CountRequests, metrics=http_metrics)]
    if traces is not None:
        from sgjax_server.middleware.traces import TraceRequests  # OpenTelemetry is an extra

        stack.append(Middleware(TraceRequests, provider=traces))
    if config.cors_allow_origins:
        # Outside the keys: a browser asks beforehand without one, and shows errors only with these headers.
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.cors_allow_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Should-Retry"],
            )
        )
    stack.append(Middleware(LogRequests, request_log=request_log))
    stack.append(Middleware(RequireApiKey, config=config))
    stack.append(Middleware(ReadBody, max_bytes=config.max_request_bytes, timeout_s=config.request_body_timeout_s))
    if config.request_timeout_s is not None:
        stack.append(Middleware(LimitTime, timeout_s=config.request_timeout_s))
    return stack
