"""OpenAI's chat completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Response

from sgjax.types import OutputDelta, Request
from sgjax_server import sse
from sgjax_server.calls import Call, encode_chat, fields_named, finished, started
from sgjax_server.openai_format import Usage, chat_logprobs, finish_fields
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.openai import ChatCompletionRequest
from sgjax_server.tokens import TokenTexts

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatCompletionRequest, context: ContextDep) -> Response:
    with fields_named(body.param_names):
        input_ids = await encode_chat(context.engine, body.messages, **body.template_options())
        request = _request(body, input_ids, context)
        call = Call(context.engine, [request])
        await started(call, context.receive)
    head = {"id": request.rid, "created": int(time.time()), "model": context.model_name}
    if body.stream:
        events = _events(call, head, context, include_usage=body.include_usage)
        return sse.EventStream(events, call.close)
    (samples,) = await finished(call, context.receive)
    choices = [
        {
            "index": sample.index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": chat_logprobs(sample.output_logprobs, context.token_texts),
            **finish_fields(sample.finish),
        }
        for sample in samples
    ]
    return json_response({**head, "object": "chat.completion", "choices": choices, "usage": Usage.of([samples])})


def _request(body: ChatCompletionRequest, input_ids: list[int], context: Context) -> Request:
    return Request(
        rid=body.rid or f"chatcmpl-{uuid.uuid4().hex}",
        input_ids=tuple(input_ids),
        sampling=body.sampling(context.sampling_defaults, body.max_new_tokens),
        return_logprob=bool(body.logprobs),
        top_logprobs_num=body.top_logprobs or 0,
        priority=body.priority or 0,
        extra_key=namespace(body.cache_salt, body.extra_key),
    )


async def _events(call: Call, head: dict[str, Any], context: Context, *, include_usage: bool) -> AsyncIterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"}
    usage = Usage()
    started: set[int] = set()
    async for _, delta in call.deltas(context.stream_interval):
        choice = _chunk_choice(delta, is_first=delta.index not in started, texts=context.token_texts)
        started.add(delta.index)
        if delta.receipt is not None:
            usage.add(delta.index, delta.receipt)
        yield sse.event({**head, "choices": [choice]})
    if include_usage:
        yield sse.event({**head, "choices": [], "usage": usage.as_dict()})


def _chunk_choice(delta: OutputDelta, *, is_first: bool, texts: TokenTexts) -> dict[str, Any]:
    content = {"role": "assistant", "content": delta.text} if is_first else {"content": delta.text}
    return {
        "index": delta.index,
        "delta": content,
        "logprobs": chat_logprobs(delta.logprobs, texts),
        **finish_fields(delta.finish),
    }
