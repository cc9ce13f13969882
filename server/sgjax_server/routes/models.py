"""The served model, as OpenAI's clients list it."""

from __future__ import annotations

from fastapi import APIRouter

from sgjax_server.errors import ApiError
from sgjax_server.routes.context import Context, ContextDep
from sgjax_server.schemas.answers.openai import ModelCard, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.head("", include_in_schema=False)
@router.get("")
async def list_models(context: ContextDep) -> ModelList:
    """The served model, in a list."""
    return {"object": "list", "data": [_card(context)]}


@router.get("/{model:path}")
async def get_model(model: str, context: ContextDep) -> ModelCard:
    """The served model, by its name or "default"."""
    if model not in (context.model_name, "default"):
        raise ApiError(404, f"the model {model!r} is not served", param="model", code="model_not_found")
    return _card(context)


def _card(context: Context) -> ModelCard:
    return {
        "id": context.model_name,
        "object": "model",
        "created": context.started_s,
        "owned_by": "sgjax",
        "root": context.engine.info.config.model_path,
        "parent": None,
        "max_model_len": context.engine.info.context_length,
    }
