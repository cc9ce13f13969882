"""Changing what is logged."""

from __future__ import annotations

from fastapi import Request

from sgjax_server.logs import set_log_level
from sgjax_server.middleware.access import control_router
from sgjax_server.middleware.request_log import RequestLog
from sgjax_server.schemas.answers.info import LoggingConfigured
from sgjax_server.schemas.logs import ConfigureLoggingRequest
from sgjax_server.shared import Shared

router = control_router()


@router.post("/configure_logging")
async def configure_logging(body: ConfigureLoggingRequest, request: Request) -> LoggingConfigured:
    """From now on, in all processes of the server; says what is logged of requests then."""
    request_log: RequestLog = request.app.state.request_log
    request_log.detail = body.detail(request_log.detail)
    if body.log_level is not None:
        set_log_level(body.log_level)
    shared: Shared = request.app.state.shared
    shared.announce_logging(request_log.detail, body.log_level)
    return {"log_requests": request_log.detail}
