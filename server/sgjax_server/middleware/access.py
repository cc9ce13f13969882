"""Who may call what: the API key opens every route, the admin key those that control the server.

A route module whose routes control the server (they change what others get, or reveal its settings) makes its router
with `control_router()`; a single such route in another module takes `dependencies=[ADMIN]`. Nothing else is needed.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from sgjax_server.config import ServerConfig
from sgjax_server.errors import ApiError, error_response

OPEN_PATHS = frozenset({"/", "/docs", "/health", "/health_generate", "/ping", "/ready"})
"""What probes ask, and the pages for people; these need no key."""

STATIC_PATH = "/static/"
"""What the page consists of; it needs no key either, and asks for one where the server wants it."""

# It only tells the OpenAPI document which routes these are; what they need depends on the settings.
_ADMIN_KEY = HTTPBearer(
    scheme_name="adminKey",
    description="The server's admin key; where it has none, what every route needs.",
    auto_error=False,
)


async def _may_control(request: Request, _: Annotated[object, Security(_ADMIN_KEY)]) -> None:
    config: ServerConfig = request.app.state.config
    if _is_of_another_site(request, config):
        raise ApiError(403, "pages of other sites may not control the server", code="other_site")
    if not (config.api_key or config.admin_api_key) and is_loopback(config.host) and not names_loopback(request):
        # To a browser a page whose name was made to lead here is of the same origin; only its name gives it away.
        message = "without a key, control routes are only for who calls this server localhost or by a loopback address"
        raise ApiError(403, message, code="other_host")
    if config.admin_api_key is not None and not presents_admin_key(config, request.scope):
        raise ApiError(401, "this route controls the server: it needs the admin key", code="invalid_api_key")


ADMIN = Depends(_may_control)
"""For one route: it needs the admin key where there is one, else what every route needs, and is for no other site."""


def control_router(**options: Any) -> APIRouter:
    """A router whose routes all have `ADMIN`, and the tag "control"."""
    return APIRouter(tags=["control"], dependencies=[ADMIN], **options)


def presents_admin_key(config: ServerConfig, scope: Scope) -> bool:
    """Whether there is an admin key and a request brings it."""
    return config.admin_api_key is not None and _presents(scope, (config.admin_api_key,))


def is_loopback(host: str) -> bool:
    """Whether a name or an address leads to the machine itself, wherever it is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(request: Request) -> bool:
    """Whether the client calls the server by a name that means its own machine."""
    host = request.headers.get("host", "")
    # Of "[::1]:30000", "::1".
    return is_loopback(host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0])


def _is_of_another_site(request: Request, config: ServerConfig) -> bool:
    """Whether a web page that CORS does not allow sends this: a browser lets it send what it may not read."""
    origin = request.headers.get("origin")
    if "*" in config.cors_allow_origins or origin in config.cors_allow_origins:
        return False
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        return True
    return request.headers.get("sec-fetch-site") in ("cross-site", "same-site")


class RequireApiKey:
    """ASGI middleware that answers 401 to whoever presents no key, before anything of the body is read.

    The admin key opens what the API key does.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._keys = tuple(key for key in (config.api_key, config.admin_api_key) if key is not None)
        self._is_needed = config.api_key is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = not self._is_needed or scope["type"] != "http" or _is_open(scope["path"])
        if is_open or _presents(scope, self._keys):
            await self._app(scope, receive, send)
        else:
            error = ApiError(401, "give a valid key: 'Authorization: Bearer KEY'", code="invalid_api_key")
            await error_response(scope["path"], error)(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(STATIC_PATH)


def _presents(scope: Scope, keys: tuple[str, ...]) -> bool:
    """Whether a request brings one of the keys, as a bearer token or as Anthropic's clients do.

    How long it takes says nothing about the keys.
    """
    found = False
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            given = value[7:].strip()
        elif name == b"x-api-key":
            given = value
        else:
            continue
        for key in keys:
            found |= hmac.compare_digest(given, key.encode())
    return found
