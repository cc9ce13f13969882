"""OpenAI's completions."""

from __future__ import annotations

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
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.openai import CompletionRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/completions")
async def completions(body: CompletionRequest, context: ContextDep) -> Response:
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
    choices = [
        _choice(sample, echo, index, body, context)
        for index, (sample, echo) in enumerate(
            (sample, echo) for samples, echo in zip(results, echoes, strict=True) for sample in samples
        )
    ]
    return json_response({**head, "choices": choices, "usage": Usage.of(results)})


async def _prompts(body: CompletionRequest, context: Context) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not prompt:
        raise RequestError("prompt", "is empty")
    if isinstance(prompt[0], str):
        return list(zip(prompt, await encode(context.engine, prompt), strict=True))
    return [(_decoded(ids, context) if body.echo else "", ids) for ids in prompt]


def _decoded(ids: Sequence[int], context: Context) -> str:
    if any(not 0 <= token_id < context.engine.info.vocab_size for token_id in ids):
        raise RequestError("prompt", "holds a token id outside the vocabulary")
    return context.engine.tokenizer.decode(ids, skip_special_tokens=False)


def _requests(body: CompletionRequest, prompt_ids: Sequence[Sequence[int]], context: Context) -> list[Request]:
    rid = body.rid or f"cmpl-{uuid.uuid4().hex}"
    sampling = body.sampling(context.sampling_defaults, body.max_tokens)
    wants_logprobs = body.logprobs is not None
    return [
        Request(
            rid=rid if len(prompt_ids) == 1 else f"{rid}-{number}",
            input_ids=tuple(ids),
            sampling=sampling,
            return_logprob=wants_logprobs,
            logprob_start_len=0 if wants_logprobs and body.echo else -1,
            top_logprobs_num=body.logprobs or 0,
            priority=body.priority or 0,
            extra_key=namespace(body.cache_salt, body.extra_key),
        )
        for number, ids in enumerate(prompt_ids)
    ]


def _choice(sample: GenerateOutput, echo: str, index: int, body: CompletionRequest, context: Context) -> dict[str, Any]:
    logprobs = _joined(sample.input_logprobs, sample.output_logprobs)
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
            **receipt_fields(delta.receipt, wanted=body.return_receipt),
        }
        if delta.receipt is not None:
            usage.add(delta.index, delta.receipt)
        yield sse.event({**head, "choices": [choice]})
    if body.include_usage:
        yield sse.event({**head, "choices": [], "usage": usage.as_dict()})


def _joined(
    prompt: Sequence[TokenLogprobs] | None, output: Sequence[TokenLogprobs] | None
) -> list[TokenLogprobs] | None:
    return None if prompt is None and output is None else [*(prompt or ()), *(output or ())]
