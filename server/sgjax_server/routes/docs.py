"""What the API is, for programs and for people."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from sgjax_server.routes.page import HEADERS

router = APIRouter(include_in_schema=False)


@router.api_route("/openapi.json", methods=["GET", "HEAD"])
async def openapi(request: Request) -> Response:
    # Making it takes a second, in which streams go on.
    content = await asyncio.to_thread(request.app.state.openapi_json)
    return Response(content, media_type="application/json")


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(await asyncio.to_thread(request.app.state.docs_page), headers=HEADERS)
