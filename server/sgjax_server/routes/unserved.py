"""Routes of the APIs that this server knows but cannot serve: they say so, instead of not being there."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter

from sgjax_server.errors import ApiError
from sgjax_server.middleware.access import control_router
from sgjax_server.routes.context import ContextDep

router = APIRouter(tags=["unserved"])
control = control_router()

# For the OpenAPI document: the only answers that these give.
_NO_MODEL = {"status_code": 400, "response_description": "There is no such model here."}
_NOT_IMPLEMENTED = {"status_code": 501, "response_description": "Not implemented."}


@router.post("/v1/embeddings", **_NO_MODEL)
@router.post("/encode", **_NO_MODEL)
@router.post("/api/embed", **_NO_MODEL)
@router.post("/api/embeddings", **_NO_MODEL)
async def embeddings(context: ContextDep) -> None:
    """400: no embedding model is served."""
    _lacks(context.model_name, "an embedding model")


@router.post("/v1/rerank", **_NO_MODEL)
@router.post("/v1/classify", **_NO_MODEL)
@router.post("/classify", **_NO_MODEL)
async def rewards(context: ContextDep) -> None:
    """400: no reward model is served. `/v1/score` compares answers with a model that generates."""
    _lacks(context.model_name, "a reward or classification model")


def _lacks(model_name: str, kind: str) -> NoReturn:
    # Not a 5xx: clients would try again.
    raise ApiError(400, f"{model_name} generates text; it is not {kind}", param="model", code="model_not_supported")


@control.post("/init_weights_update_group", **_NOT_IMPLEMENTED)
@control.post("/update_weights_from_distributed", **_NOT_IMPLEMENTED)
@control.post("/update_weights_from_tensor", **_NOT_IMPLEMENTED)
@control.post("/update_weights_from_ipc", **_NOT_IMPLEMENTED)
async def weights_from_elsewhere() -> None:
    """501: weights come from disk only."""
    raise ApiError(501, "weights are only updated from disk: /update_weights_from_disk", code="not_implemented")


@control.post("/release_memory_occupation", **_NOT_IMPLEMENTED)
@control.post("/resume_memory_occupation", **_NOT_IMPLEMENTED)
async def memory() -> None:
    """501: the engine keeps its memory while it runs."""
    raise ApiError(501, "the engine keeps its memory while it runs", code="not_implemented")


@control.post("/get_weights_by_name", **_NOT_IMPLEMENTED)
async def weights_by_name() -> None:
    """501: weights cannot be read."""
    raise ApiError(501, "weights cannot be read over HTTP", code="not_implemented")


@control.post("/load_lora_adapter", **_NOT_IMPLEMENTED)
@control.post("/unload_lora_adapter", **_NOT_IMPLEMENTED)
async def adapters() -> None:
    """501: no adapters."""
    raise ApiError(501, "LoRA adapters are not supported", code="not_implemented")
