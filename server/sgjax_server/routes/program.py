"""Programs of the frontend language, run whole."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from sgjax_server import sse
from sgjax_server.calls import while_connected
from sgjax_server.programs.pool import ProgramPool
from sgjax_server.programs.run import ProgramRun
from sgjax_server.routes.context import ContextDep, json_response
from sgjax_server.schemas.answers.program import ProgramAnswer, ProgramEvent
from sgjax_server.schemas.program import ProgramRequest

router = APIRouter(tags=["programs"])


@router.post("/run_program", responses=sse.OPENAI.responses(ProgramAnswer, ProgramEvent))
async def run_program(body: ProgramRequest, context: ContextDep, request: Request) -> Response:
    """Runs a program next to the engine; see docs/programs_on_the_server.md."""
    call = await asyncio.to_thread(body.call)  # a large program takes a while to check
    pool: ProgramPool = request.app.state.programs
    run = pool.start(context.engine, call)
    if body.stream:
        return sse.EventStream(functools.partial(sse.write_each, _events(run, call.rid)), run.close)
    try:
        answer = await while_connected(run.collect(), context.receive)
    finally:
        run.close()
    return json_response({name: value for name, value in answer.items() if name not in ("type", "transcript")})


async def _events(run: ProgramRun, rid: str) -> AsyncIterator[bytes]:
    yield sse.event({"type": "start", "id": rid})
    async for event in run.events():
        yield sse.event(event)
