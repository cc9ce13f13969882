"""Readiness, by what the server knows and by a token that it generates."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

import sgjax.types
from sgjax.types import QueueFull, SamplingParams
from sgjax_server.calls import Call, finished
from sgjax_server.errors import ApiError
from sgjax_server.routes.context import Context, ContextDep
from sgjax_server.schemas.answers.info import Generating, NotReady, Ready

router = APIRouter(tags=["health"])

_READINESS: dict[int | str, dict[str, Any]] = {
    200: {"model": Ready},
    503: {"description": "Not ready.", "model": NotReady},
}


@router.head("/health", include_in_schema=False)
@router.head("/ready", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
@router.get("/health", responses=_READINESS)
@router.get("/ready", responses=_READINESS)
@router.get("/ping", responses=_READINESS)
async def health(request: Request) -> JSONResponse:
    """200 when requests are served; 503 while the model loads and after the engine has failed."""
    status = request.app.state.host.status()
    return JSONResponse(status, 200 if status["status"] == "ready" else 503)


@router.get("/health_generate")
async def health_generate(context: ContextDep) -> Generating:
    """200 when the model generates: a token for this request or, under load, tokens for others meanwhile; else 503."""
    limit_s = context.server_config.health_generate_timeout_s
    before = -1
    try:
        async with asyncio.timeout(limit_s):
            before = await _num_generated(context)
            await _one_token(context)
            return {"status": "ready"}
    except QueueFull:
        return {"status": "busy"}  # and between two steps it has just said how much it has generated
    except TimeoutError:
        if 0 <= before < await _num_generated(context):
            return {"status": "busy"}
    raise ApiError(503, f"no token was generated within {limit_s:g} s", code="not_generating")


async def _one_token(context: Context) -> None:
    request = sgjax.types.Request(
        rid=f"health-{uuid.uuid4().hex}",
        input_ids=(0,),
        sampling=SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True),
    )
    await finished(Call(context, [request]), context.receive)


async def _num_generated(context: Context) -> int:
    return (await context.engine.stats()).counters.generated_tokens
