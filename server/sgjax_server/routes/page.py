"""The page for people: a chat, and a live view of the engine. Plain files, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from sgjax_server.errors import ApiError
from sgjax_server.middleware.access import STATIC_PATH

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in (Path(__file__).parents[1] / "static").iterdir() if path.suffix in _TYPES}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an upgrade, no old file beside a new one
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])  # some clients ask so whether a server is there
async def page() -> FileResponse:
    return _file("index.html")


@router.get(STATIC_PATH + "{name}")
async def static(name: str) -> FileResponse:
    if name not in _FILES:
        raise ApiError(404, f"there is no {name}")
    return _file(name)


def _file(name: str) -> FileResponse:
    path = _FILES[name]
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=HEADERS)
