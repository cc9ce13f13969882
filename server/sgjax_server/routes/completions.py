"""OpenAI's completions."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Response

from sgjax.types import GenerateOutput, Request, RequestError, TokenLogprobs
from sgjax_server import sse
from sgjax_server.calls import Call, encode, fields_named, finished, started
from sgjax_server.openai_format import CompletionLogprobs, Usage, finish_fields, receipt_fields
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.openai import Completion, CompletionChunk, TextChoice
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.openai import CompletionRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/completions", responses=sse.OPENAI.responses(Completion, CompletionChunk))
async def completions(body: CompletionRequest, context: ContextDep) -> Response:
    """Continues one prompt or several, as OpenAI's API does."""
    with fields_named(body.param_names):
        prompts = await _prompts(body, context)
        requests = _requests(body, [ids for _, ids in prompts], context)
        call = Call(context, requests)
        await started(call, context.receive)
    echoes = [text if body.echo else "" for text, _ in prompts]
    head = {"id": requests[0].rid, "object": "text_completion", "created": int(time.time())}
    head["model"] = context.model_name
    if body.stream:
        events = _events(call, head, echoes, body, context)
        return sse.EventStream(events, call.close)
    results = await finished(call, context.receive)
    best = [_likeliest(samples, body.num_choices) for samples in results] if body.is_ranked else results
    answers = [(sample, echo) for samples, echo in zip(best, echoes, strict=True) for sample in samples]
    choices = [_choice(sample, echo, index, body, context) for index, (sample, echo) in enumerate(answers)]
    usage = Usage.of(results)
    sglext = usage.sglext(wanted=bool(body.return_cached_tokens_details))
    return json_response({**head, "choices": choices, "usage": usage.as_dict(), **sglext})


async def _prompts(body: CompletionRequest, context: Context) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not prompt:
        raise RequestError("prompt", "is empty")
    if isinstance(prompt[0], str):
        return list(zip(prompt, await encode(context.engine, prompt), strict=True))
    return [(context.decode(ids, "prompt", skip_special_tokens=False) if body.echo else "", ids) for ids in prompt]


def _requests(body: CompletionRequest, prompt_ids: Sequence[Sequence[int]], context: Context) -> list[Request]:
    rid = body.rid or f"cmpl-{uuid.uuid4().hex}"
    sampling = body.sampling(context.sampling_defaults, body.max_tokens)
    if body.is_ranked:
        sampling = dataclasses.replace(sampling, n=body.best_of)
    wants_logprobs = body.logprobs is not None
    return [
        Request(
            rid=rid if len(prompt_ids) == 1 else f"{rid}_{number}",
            input_ids=tuple(ids),
            sampling=sampling,
            return_logprob=wants_logprobs or body.is_ranked,
            logprob_start_len=0 if wants_logprobs and body.echo else -1,
            top_logprobs_num=body.logprobs or 0,
            priority=body.priority or 0,
            extra_key=namespace(body.cache_salt, body.extra_key),
        )
        for number, ids in enumerate(prompt_ids)
    ]


def _likeliest(samples: Sequence[GenerateOutput], count: int) -> list[GenerateOutput]:
    """The best samples by mean log-probability per token, as `best_of` is defined; equals keep their order."""

    def mean_logprob(sample: GenerateOutput) -> float:
        logprobs = [one.logprob for one in sample.output_logprobs or () if one.logprob is not None]
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf

    return sorted(samples, key=mean_logprob, reverse=True)[:count]


def _choice(sample: GenerateOutput, echo: str, index: int, body: CompletionRequest, context: Context) -> TextChoice:
    wanted = body.logprobs is not None
    logprobs = _joined(sample.input_logprobs, sample.output_logprobs) if wanted else None
    return {
        "index": index,
        "text": echo + sample.text,
        "logprobs": CompletionLogprobs(context.token_texts).format(logprobs),
        **finish_fields(sample.finish),
        **receipt_fields(sample.receipt, wanted=body.return_receipt),
    }


async def _events(
    call: Call, head: dict[str, Any], echoes: Sequence[str], body: CompletionRequest, context: Context
) -> AsyncIterator[bytes]:
    usage = Usage()
    formats: dict[int, CompletionLogprobs] = {}
    async for number, delta in call.deltas(context.stream_interval):
        index = number * call.requests[0].sampling.n + delta.index
        echo = echoes[number] if index not in formats else ""
        form = formats.setdefault(index, CompletionLogprobs(context.token_texts))
        choice = {
            "index": index,
            "text": echo + delta.text,
            "logprobs": form.format(_joined(delta.prompt_logprobs, delta.logprobs)),
            **finish_fields(delta.finish),
        }
        sglext = {}
        if delta.finish is not None and delta.receipt is not None:
            usage.add(delta.index, delta.receipt)
            choice |= receipt_fields(delta.receipt, wanted=body.return_receipt)
            sglext = usage.sglext(wanted=bool(body.return_cached_tokens_details))
        yield sse.event({**head, "choices": [choice], **sglext})
    if body.include_usage:
        yield sse.event({**head, "choices": [], "usage": usage.as_dict()})


def _joined(
    prompt: Sequence[TokenLogprobs] | None, output: Sequence[TokenLogprobs] | None
) -> list[TokenLogprobs] | None:
    return None if prompt is None and output is None else [*(prompt or ()), *(output or ())]
