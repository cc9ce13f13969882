"""How busy the engine is, for load balancers: SGLang's routes."""

from __future__ import annotations

import datetime
from typing import Any

from fastapi import APIRouter

from sgjax import __version__
from sgjax_server.routes.context import Context, ContextDep
from sgjax_server.schemas.answers.info import Load, Loads

router = APIRouter(tags=["info"])


@router.get("/v1/loads")
async def loads(context: ContextDep) -> Loads:
    """Requests and tokens at work and waiting; one entry, since there is one engine."""
    return {
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": __version__,
        "accelerator": context.engine.info.device,
        "loads": [await _load(context)],
    }


@router.get("/get_load", include_in_schema=False)
async def get_load(context: ContextDep) -> list[dict[str, Any]]:
    """The same as older clients of SGLang read it."""
    load = await _load(context)
    num_running, num_waiting = load["num_running_reqs"], load["num_waiting_reqs"]
    return [
        {
            "dp_rank": 0,
            "num_reqs": num_running + num_waiting,
            "num_waiting_reqs": num_waiting,
            "num_tokens": load["num_used_tokens"],
        }
    ]


async def _load(context: Context) -> Load:
    stats = await context.stats()
    info, cache, counters = context.engine.info, stats.cache, stats.counters
    page_size = info.config.page_size
    # What is cached and used by nobody gives way at once, so it is no load.
    num_used = cache.num_pages - cache.num_free - cache.num_evictable
    return {
        "dp_rank": 0,
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": stats.num_waiting + stats.num_grammar_queue,
        "num_used_tokens": num_used * page_size,
        "max_total_num_tokens": cache.num_pages * page_size,
        "max_running_requests": info.config.max_running_requests,
        "token_usage": num_used / cache.num_pages,
        "cache_hit_rate": counters.cached_tokens / counters.prompt_tokens if counters.prompt_tokens else 0.0,
        "queues": {"waiting": stats.num_waiting, "grammar": stats.num_grammar_queue},
    }
