"""What changes the server for everybody: SGLang's control routes."""

from __future__ import annotations

import asyncio
import os
import tempfile

from fastapi import Response

from sgjax.types import RequestError
from sgjax_server.middleware.access import control_router
from sgjax_server.routes.context import ContextDep, json_response
from sgjax_server.schemas.answers.info import (
    CacheFlushed,
    Controlled,
    ProfileStarted,
    ProfileWritten,
    WeightsNotUpdated,
    WeightsUpdated,
)
from sgjax_server.schemas.control import (
    AbortRequest,
    ContinueRequest,
    PauseRequest,
    ProfileRequest,
    UpdateWeightsRequest,
)
from sgjax_server.schemas.errors import OpenAIError

router = control_router()


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache")
async def flush_cache(context: ContextDep) -> CacheFlushed:
    """Forgets every cached prefix that no running request uses."""
    return {"success": True, "freed_pages": await context.engine.flush_cache()}


@router.post("/abort_request", response_class=Response)
async def abort_request(body: AbortRequest, context: ContextDep) -> Response:
    """Ends a request, those of a batch, or all. Clients get what there is so far. An unknown id is no error."""
    await context.engine.abort_requests(None if body.abort_all else body.rid)
    return Response(status_code=200)


@router.post("/pause_generation")
async def pause_generation(context: ContextDep, body: PauseRequest | None = None) -> Controlled:
    """Stops all generation until /continue_generation. New requests wait."""
    await context.engine.pause((body or PauseRequest()).mode)
    return {"status": "ok", "message": "Generation is paused."}


@router.post("/continue_generation")
async def continue_generation(context: ContextDep, body: ContinueRequest | None = None) -> Controlled:
    """Goes on after /pause_generation."""
    await context.engine.resume()
    return {"status": "ok", "message": "Generation goes on."}


@router.post(
    "/update_weights_from_disk",
    responses={200: {"model": WeightsUpdated}, 400: {"model": WeightsNotUpdated | OpenAIError}},
)
async def update_weights_from_disk(body: UpdateWeightsRequest, context: ContextDep) -> Response:
    """Serves another checkpoint of the same architecture, without a restart; answers come in SGLang's form.

    Requests that run go on with the new weights, unless `abort_all_requests`. When the checkpoint is refused, the old
    weights go on serving.
    """
    engine = context.engine
    before = await engine.stats()
    if body.abort_all_requests:
        await engine.abort_requests()
    if body.keep_pause:
        await engine.pause("retract")
    try:
        version = await engine.update_weights(body.model_path, body.weight_version)
    except RequestError as error:
        if body.keep_pause and not before.is_paused:
            await engine.resume()
        return json_response(WeightsNotUpdated(success=False, message=str(error), num_paused_requests=0), 400)
    is_paused = before.is_paused or body.keep_pause
    updated = WeightsUpdated(
        success=True,
        message=f"The weights are those of {body.model_path}, version {version}.",
        num_paused_requests=before.num_running + before.num_waiting if is_paused else 0,
        weight_version=version,
    )
    return json_response(updated)


@router.get("/start_profile", include_in_schema=False)
@router.post("/start_profile")
async def start_profile(context: ContextDep, body: ProfileRequest | None = None) -> ProfileStarted:
    """Begins a `jax.profiler` trace, in a new folder of its own unless `output_dir` names one."""
    given = body.output_dir if body is not None else None
    output_dir = await asyncio.to_thread(_folder, given)
    try:
        await context.engine.start_profile(output_dir)
    except RequestError:
        if given is None:
            await asyncio.to_thread(os.rmdir, output_dir)
        raise
    return {"success": True, "output_dir": output_dir}


@router.get("/stop_profile", include_in_schema=False)
@router.post("/stop_profile")
async def stop_profile(context: ContextDep) -> ProfileWritten:
    """Ends the trace and writes it."""
    await context.engine.stop_profile()
    return {"success": True}


def _folder(path: str | None) -> str:
    """The folder, made where it is not there. Raises RequestError: before a trace that could not be written."""
    if path is None:
        return tempfile.mkdtemp(prefix="sgjax-profile-")
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RequestError("output_dir", str(error)) from None
    return path
