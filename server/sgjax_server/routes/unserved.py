"""Routes of the APIs that this server knows but cannot serve: they say so, instead of not being there."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter

from sgjax_server.errors import ApiError
from sgjax_server.middleware.access import control_router
from sgjax_server.routes.context import ContextDep

router = APIRouter(tags=["unserved"])
control = control_router()


@router.post("/v1/embeddings")
@router.post("/encode")
@router.post("/api/embed")
@router.post("/api/embeddings")
async def embeddings(context: ContextDep) -> None:
    """400: no embedding model is served."""
    _lacks(context.model_name, "an embedding model")


@router.post("/v1/rerank")
@router.post("/v1/classify")
@router.post("/classify")
async def rewards(context: ContextDep) -> None:
    """400: no reward model is served. `/v1/score` compares answers with a model that generates."""
    _lacks(context.model_name, "a reward or classification model")


def _lacks(model_name: str, kind: str) -> NoReturn:
    # Not a 5xx: clients would try again.
    raise ApiError(400, f"{model_name} generates text; it is not {kind}", param="model", code="model_not_supported")


@control.post("/init_weights_update_group")
@control.post("/update_weights_from_distributed")
@control.post("/update_weights_from_tensor")
@control.post("/update_weights_from_ipc")
async def weights_from_elsewhere() -> None:
    """501: weights come from disk only."""
    raise ApiError(501, "weights are only updated from disk: /update_weights_from_disk", code="not_implemented")


@control.post("/release_memory_occupation")
@control.post("/resume_memory_occupation")
async def memory() -> None:
    """501: the engine keeps its memory while it runs."""
    raise ApiError(501, "the engine keeps its memory while it runs", code="not_implemented")


@control.post("/get_weights_by_name")
async def weights_by_name() -> None:
    """501: weights cannot be read."""
    raise ApiError(501, "weights cannot be read over HTTP", code="not_implemented")


@control.post("/load_lora_adapter")
@control.post("/unload_lora_adapter")
async def adapters() -> None:
    """501: no adapters."""
    raise ApiError(501, "LoRA adapters are not supported", code="not_implemented")
