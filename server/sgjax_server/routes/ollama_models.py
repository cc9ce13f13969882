"""Ollama's API: what is served, and by which version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders

from sgjax import __version__
from sgjax_server.ollama_format import timestamp
from sgjax_server.routes.context import Context, ContextDep
from sgjax_server.schemas.answers.ollama import (
    Capability,
    ModelDetails,
    OllamaCard,
    OllamaModel,
    OllamaModels,
    OllamaVersion,
)
from sgjax_server.schemas.ollama import ShowRequest

_WEIGHT_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class _UnlabelledBodies(APIRoute):
    """Bodies are JSON whatever their type is said to be: Ollama's documentation calls it by curl without a header.

    Not in a browser: a page of another site may send such a body, but cannot hide where it is from.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def labelled(request: Request) -> Response:
            if "origin" not in request.headers:
                MutableHeaders(scope=request.scope)["content-type"] = "application/json"
                request = Request(request.scope, request.receive)
            return await handle(request)

        return labelled


def ollama_router() -> APIRouter:
    """A router for routes of this API."""
    return APIRouter(prefix="/api", tags=["ollama"], route_class=_UnlabelledBodies)


router = ollama_router()


def model_tag(context: Context) -> str:
    """The model's name; Ollama's names have a tag."""
    name = context.model_name
    return name if ":" in name else f"{name}:latest"


@router.get("/version")
async def version() -> OllamaVersion:
    """The server's own version: Ollama's would promise what Ollama alone has."""
    return {"version": __version__}


@router.get("/tags")
async def tags(context: ContextDep) -> OllamaModels:
    """The served model, which is the only one."""
    return {"models": [{**_card(context), "modified_at": timestamp(context.started_s)}]}


@router.get("/ps")
async def running(context: ContextDep) -> OllamaModels:
    """The served model, which stays loaded, so that it has no `expires_at`."""
    return {"models": [{**_card(context), "context_length": context.engine.info.context_length}]}


@router.post("/show")
async def show(body: ShowRequest, context: ContextDep) -> OllamaModel:
    """The served model's facts: its family, chat template, sampling defaults and capabilities."""
    info = context.engine.info
    family = _family(context)
    return {
        "modified_at": timestamp(context.started_s),
        "template": context.engine.tokenizer.chat_template,
        "parameters": "\n".join(f"{name} {json.dumps(value)}" for name, value in context.sampling_defaults.items()),
        "details": _details(context),
        "model_info": {
            "general.architecture": family,
            "general.basename": info.model_name,
            f"{family}.context_length": info.context_length,
            f"{family}.vocab_size": info.vocab_size,
        },
        "capabilities": _capabilities(context),
    }


def _capabilities(context: Context) -> list[Capability]:
    format = context.model_format
    found: dict[Capability, bool] = {
        "completion": True,
        "tools": format.tools is not None,
        "thinking": format.reasoning is not None,
    }
    return [name for name, is_there in found.items() if is_there]


def _card(context: Context) -> OllamaCard:
    tag = model_tag(context)
    path = context.engine.info.config.model_path
    # Ollama's is of the model's files; clients take it as the model's identity and print the first digits.
    digest = hashlib.sha256(f"{tag}\0{path}".encode()).hexdigest()
    return {"name": tag, "model": tag, "digest": digest, "details": _details(context)}


def _details(context: Context) -> ModelDetails:
    dtype = context.engine.info.config.dtype
    family = _family(context)
    return {
        "parent_model": "",
        "family": family,
        "families": [family],
        "quantization_level": _WEIGHT_NAMES.get(dtype, dtype),
    }


def _family(context: Context) -> str:
    """`LlamaForCausalLM` is of the family "llama"."""
    return context.engine.info.architecture.removesuffix("ForCausalLM").lower()
