"""The page for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import sgjax
from sgjax_server.errors import ApiError
from sgjax_server.host import EngineHost
from sgjax_server.middleware.http_metrics import HttpMetrics
from sgjax_server.routes.context import ENGINE_TIMEOUT_S

router = APIRouter(tags=["info"])

_CONTENT = {"text/plain": {"schema": {"type": "string"}}}


@router.get("/metrics", response_class=Response, responses={200: {"content": _CONTENT}})
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format: the engine's, where it answers, and those of HTTP always."""
    engine_page = await _engine_page(request.app.state.host, request.app.state.config.served_model_name)
    http: HttpMetrics = request.app.state.http_metrics
    page = http.render(engine_up=engine_page is not None) + (engine_page or "")
    return Response(page, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _engine_page(host: EngineHost, model_name: str | None) -> str | None:
    """None while the engine is loading, and when it has failed or does not answer."""
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT_S):
            engine = host.engine
            return await engine.metrics(model_name or engine.info.model_name)
    except (ApiError, sgjax.EngineError, TimeoutError):
        return None
