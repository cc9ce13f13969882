"""What changes the server for everybody: SGLang's control routes."""

from __future__ import annotations

from typing import Any

from sgjax_server.middleware.access import control_router
from sgjax_server.routes.context import ContextDep

router = control_router()


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache")
async def flush_cache(context: ContextDep) -> dict[str, Any]:
    """Forgets every cached prefix that no running request uses."""
    return {"success": True, "freed_pages": await context.engine.flush_cache()}
