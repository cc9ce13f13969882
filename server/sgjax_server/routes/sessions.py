"""SGLang's sessions: opened, used by /generate, closed."""

from __future__ import annotations

from fastapi import APIRouter, Response

from sgjax_server.routes.context import ContextDep
from sgjax_server.schemas.native import CloseSessionRequest, OpenSessionRequest

router = APIRouter(tags=["native"])


@router.post("/open_session")
async def open_session(body: OpenSessionRequest, context: ContextDep) -> str:
    """Opens a session; the answer is its id."""
    return context.sessions.open(body.session_id, is_linear=bool(body.streaming), idle_s=body.timeout)


@router.post("/close_session", response_class=Response)
async def close_session(body: CloseSessionRequest, context: ContextDep) -> Response:
    """Forgets a session. What it has in the prefix cache stays there until the room is needed."""
    context.sessions.close(body.session_id)
    return Response(status_code=200)
