"""Readiness."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 when requests are served; 503 while the model loads and after the engine has failed."""
    status = request.app.state.host.status()
    return JSONResponse(status, 200 if status["status"] == "ready" else 503)
