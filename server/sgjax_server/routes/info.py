"""SGLang's routes about the server itself: what it serves and how it does."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Response

from sgjax import __version__
from sgjax.lang.program_json import VERSION as PROGRAM_VERSION
from sgjax_server.middleware.access import ADMIN
from sgjax_server.routes.context import ContextDep, json_response
from sgjax_server.schemas.answers.info import ModelInfo, ServerInfo, WeightVersion

router = APIRouter(tags=["info"])


@router.get("/model_info")
@router.get("/get_model_info", include_in_schema=False)
async def model_info(context: ContextDep) -> ModelInfo:
    """The model, with what a client needs to write prompts for it."""
    info, tokenizer = context.engine.info, context.engine.tokenizer
    special = tokenizer.special_tokens
    stats = await context.stats()
    return {
        "model_path": info.config.model_path,
        "tokenizer_path": info.config.tokenizer_path or info.config.model_path,
        "served_model_name": context.model_name,
        "is_generation": True,
        "weight_version": stats.weight_version,
        "architectures": [info.architecture],
        "vocab_size": info.vocab_size,
        "context_length": info.context_length,
        "page_size": info.config.page_size,
        "chat_template": tokenizer.chat_template,
        "bos_token": special.get("bos_token"),
        "eos_token": special.get("eos_token"),
        "eos_token_ids": list(tokenizer.eos_token_ids),
        "programs": PROGRAM_VERSION,
        "sampling_defaults": context.sampling_defaults,
    }


@router.get("/get_weight_version")
async def weight_version(context: ContextDep) -> WeightVersion:
    """Which weights serve now: "default" until /update_weights_from_disk."""
    return {"weight_version": (await context.stats()).weight_version}


@router.get("/server_info", dependencies=[ADMIN], responses={200: {"model": ServerInfo}})
@router.get("/get_server_info", include_in_schema=False, dependencies=[ADMIN])
async def server_info(context: ContextDep) -> Response:
    """Every setting but the keys, the version, and the engine's state and totals in `internal_states` (one entry)."""
    stats = await context.stats()
    return json_response(
        {
            **dataclasses.asdict(context.engine.info.config),
            **context.server_config.public(),
            "served_model_name": context.model_name,
            "max_total_num_tokens": stats.cache.num_pages * context.engine.info.config.page_size,
            "internal_states": [dataclasses.asdict(stats)],
            "version": __version__,
        }
    )
