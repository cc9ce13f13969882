"""The live view's data: statistics, the batch, the queue and the prefix tree, as they change."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from sgjax_server.config import ServerConfig
from sgjax_server.errors import ApiError
from sgjax_server.live_feed import LiveFeed
from sgjax_server.middleware.access import is_loopback, names_loopback, presents_admin_key
from sgjax_server.middleware.timeout import taken_timeout
from sgjax_server.routes.context import ContextDep

# Whoever forwards requests may forward anybody's.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")

router = APIRouter()


@router.get("/live", include_in_schema=False)
async def live(request: Request, context: ContextDep) -> Response:
    """A snapshot about twice a second, until the client goes."""
    config = context.server_config
    if config.live_view == "off":
        raise ApiError(404, "the live view is switched off (--live-view off)", code="live_view_off")
    taken_timeout(request.scope)  # whoever watches is not waiting for an end
    feed: LiveFeed = request.app.state.live
    return feed.watch(with_texts=_may_see_texts(config, request))


def _may_see_texts(config: ServerConfig, request: Request) -> bool:
    """Whether this client is shown how the prompts and answers of all clients begin.

    With "auto": where there is an admin key, whoever brings it; else only a browser on this very machine. That the
    request names this machine keeps out web pages whose own name was made to lead here; other sites' pages may be let
    in by CORS, but not to this.
    """
    if config.live_view != "auto":
        return config.live_view == "full"
    if config.admin_api_key is not None:
        return presents_admin_key(config, request.scope)
    origin = request.headers.get("origin")
    is_direct = not any(name in request.headers for name in _FORWARDED)
    is_ours = origin is None or origin.partition("://")[2] == request.headers.get("host")
    return is_direct and is_ours and is_loopback(config.host) and names_loopback(request)
