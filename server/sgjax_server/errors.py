"""Errors as clients parse them: every API has its shape, chosen by the path. Each names the field at fault."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

import sgjax
from sgjax.types import QueueFull, RequestError
from sgjax_server.schemas.errors import AnthropicError, ErrorDetails, OllamaError, OpenAIError
from sgjax_server.validation import describe, path_of

log = logging.getLogger(__name__)

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with an HTTP status and a message for the client.

    Attributes:
      param: the request's field that is at fault. code: a machine-readable reason, such as "model_not_found".
      details: what else OpenAI's shape shall hold.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: ErrorDetails | None = None,
    ):
        super().__init__(message)
        self.status = status
        # What a client sent may be quoted here, and JSON can hold what is no Unicode text.
        self.message = message.encode(errors="replace").decode()
        self.param = None if param is None else param.encode(errors="replace").decode()
        self.code = code
        self.details = details or ErrorDetails()


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
        case HTTPException(
            status_code=400, __cause__=(UnicodeDecodeError() | RecursionError() | ValueError()) as cause
        ):
            return ApiError(400, _unreadable(cause))
        case HTTPException(status_code=status, detail=detail):
            return ApiError(status, str(detail))
    if isinstance(error, sgjax.EngineError):
        return ApiError(503, str(error), code="engine_failed")
    log.error("unexpected error", exc_info=error)
    return ApiError(500, f"{type(error).__name__}: see the server's log")


def openai_error(error: ApiError) -> OpenAIError:
    """An error in OpenAI's shape, which SGLang's own routes have too."""
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code, **error.details}
    }


def responses_error(error: ApiError) -> dict[str, Any]:
    """An error as an event of a stream of OpenAI's Responses."""
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param}


def anthropic_error(error: ApiError) -> AnthropicError:
    """An error in Anthropic's shape."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: ApiError) -> OllamaError:
    """An error in Ollama's shape."""
    return {"error": error.message}


class ErrorShape(NamedTuple):
    """What errors of an API look like: the schema of their bodies, and what makes one."""

    schema: type
    body: Callable[[ApiError], Mapping[str, Any]]


_OPENAI = ErrorShape(OpenAIError, openai_error)
# By the start of the path; OpenAI's for all others.
_SHAPES = {"/v1/messages": ErrorShape(AnthropicError, anthropic_error), "/api/": ErrorShape(OllamaError, ollama_error)}


def error_shape(path: str) -> ErrorShape:
    """The shape of the API that has this path."""
    return next((shape for start, shape in _SHAPES.items() if path.startswith(start)), _OPENAI)


def error_response(path: str, error: ApiError) -> Response:
    """The answer to a request that failed, in the shape of the API that has this path."""
    headers = {}
    match error.status:
        case 401:
            headers["WWW-Authenticate"] = "Bearer"
        case 429 | 503:
            headers["Retry-After"] = "1"
        case 501 | 504:
            headers["X-Should-Retry"] = "false"  # clients of OpenAI and Anthropic would, and it would end no better
        case 408 | 413 | 415:
            headers["Connection"] = "close"  # what is left of the body is not read
        case 500:
            headers["Connection"] = "close"  # uvicorn closes it, and a client must not ask again on it
    return Response(to_json(error_shape(path).body(error)), error.status, headers, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of the application, a route that does not exist included, come in its API's shape."""

    async def respond(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone):
            return Response(status_code=499)
        response = error_response(request.url.path, as_api_error(error))
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods(app, request.scope))
        return response

    expected = (ApiError, RequestError, QueueFull, sgjax.EngineError, RequestValidationError, HTTPException, ClientGone)
    for kind in (*expected, Exception):
        app.add_exception_handler(kind, respond)


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """What a path may be asked with; Starlette names only the methods of the first route that has the path."""
    methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    scopes = [{**scope, "method": method} for method in methods]
    return [tried["method"] for tried in scopes if any(route.matches(tried)[0] is Match.FULL for route in app.routes)]


def _unreadable(error: Exception) -> str:
    """Why FastAPI could not parse a body."""
    match error:
        case UnicodeDecodeError(start=start):
            return f"the body: is not UTF-8, from byte {start} on"
        case RecursionError():
            return "the body: is nested too deeply"
        case _:  # of a ValueError's kinds only this one is left
            return f"the body: has an integer of more than {sys.get_int_max_str_digits()} digits"


def _from_validation(error: RequestValidationError) -> ApiError:
    """Pydantic's findings about the first field that has any. A union's members each report one."""
    findings = error.errors()
    for finding in findings:
        cause = finding.get("ctx", {}).get("error")
        if isinstance(cause, RequestError):
            holders = path_of(finding, error.body)  # of a nested object, the request's own field first
            param = holders[0] if holders else cause.field
            return ApiError(400, f"{'.'.join([*holders, cause.field])}: {cause.message}", param=param)
    if isinstance(error.body, bytes):
        return ApiError(400, "the body: must be JSON, with the header 'Content-Type: application/json'")
    first = findings[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body: is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    if param is None:
        return ApiError(400, f"the body: {first['msg']}")
    about = [finding for finding in findings if len(finding["loc"]) > 1 and str(finding["loc"][1]) == param]
    return ApiError(400, describe(about, error.body), param=param)
