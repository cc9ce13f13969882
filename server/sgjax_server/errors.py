"""Errors as every route reports them: OpenAI's shape, with the offending field in `param`."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

import sgjax
from sgjax.types import QueueFull, RequestError

log = logging.getLogger(__name__)

_TYPES = {404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Ends a request with an HTTP status and a message for the client.

    Attributes:
      param: the request's field that is at fault. code: a machine-readable reason, such as "model_not_found".
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        # What a client sent may be quoted here, and JSON can hold what is no Unicode text.
        self.message = message.encode(errors="replace").decode()
        self.param = None if param is None else param.encode(errors="replace").decode()
        self.code = code

    def body(self) -> dict[str, Any]:
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception. Only unexpected ones are logged, without the request's content."""
    match error:
        case ApiError():
            return error
        case RequestError(field=field, message=message):
            return ApiError(400, f"{field}: {message}", param=field)
        case QueueFull():
            return ApiError(429, str(error), code="queue_full")
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException(status_code=status, detail=detail):
            return ApiError(status, str(detail))
    if isinstance(error, sgjax.EngineError):
        return ApiError(503, str(error), code="engine_failed")
    log.error("unexpected error", exc_info=error)
    return ApiError(500, f"{type(error).__name__}: see the server's log")


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of the application, a route that does not exist included, come in the one shape."""

    async def respond(_: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone):
            return Response(status_code=499)
        api_error = as_api_error(error)
        headers = {"Retry-After": "1"} if api_error.status in (429, 503) else None
        return Response(to_json(api_error.body()), api_error.status, headers, "application/json")

    for kind in (ApiError, RequestError, QueueFull, RequestValidationError, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, respond)


def _from_validation(error: RequestValidationError) -> ApiError:
    """Pydantic's findings about the first field that has any. A union's members each report one."""
    findings = error.errors()
    for finding in findings:
        cause = finding.get("ctx", {}).get("error")
        if isinstance(cause, RequestError):
            holders = [str(part) for part in finding["loc"][1:]]  # of a nested object, the request's own field first
            param = holders[0] if holders else cause.field
            return ApiError(400, f"{'.'.join([*holders, cause.field])}: {cause.message}", param=param)
    first = findings[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    if param is None:
        return ApiError(400, f"the body: {first['msg']}")
    lines = [
        f"{'.'.join(str(part) for part in finding['loc'][1:])}: {finding['msg']}"
        for finding in findings
        if len(finding["loc"]) > 1 and str(finding["loc"][1]) == param
    ]
    return ApiError(400, "; ".join(lines[:4]), param=param)
