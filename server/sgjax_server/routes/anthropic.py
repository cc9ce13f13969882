"""Anthropic's Messages API."""

from __future__ import annotations

import asyncio
import functools
import itertools
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Response

from sgjax.types import SamplingParams
from sgjax_server import sse
from sgjax_server.anthropic_format import MessageEvents, message
from sgjax_server.calls import fields_named
from sgjax_server.chat.turn import ChatCall, ChatEvent, ChatTurn, encode_turn, start_turn
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.anthropic import AnthropicMessage, MessageEvent, TokenCount
from sgjax_server.schemas.anthropic import CountTokensRequest, MessagesRequest

router = APIRouter(prefix="/v1/messages", tags=["anthropic"])


@router.post("", responses=sse.ANTHROPIC.responses(AnthropicMessage, MessageEvent))
async def messages(body: MessagesRequest, context: ContextDep) -> Response:
    """Answers a conversation, as Anthropic's API does."""
    rid = f"msg_{uuid.uuid4().hex}"
    with fields_named(body.PARAM_NAMES):
        sampling = body.sampling(context.sampling_defaults)
        turn = ChatTurn(rid=rid, sampling=sampling, clip_to_context=True, **body.turn_fields())
        call = await start_turn(turn, context)
    if body.stream:
        return sse.EventStream(functools.partial(_write, call, rid, body, context), call.close, sse.ANTHROPIC)
    (answer,) = await call.answers(context.receive)
    return json_response(message(rid, context.model_name, answer, body))


@router.post("/count_tokens")
async def count_tokens(body: CountTokensRequest, context: ContextDep) -> TokenCount:
    """How long the prompt of such a conversation is; nothing is generated."""
    with fields_named(body.PARAM_NAMES):
        turn = ChatTurn(rid="count_tokens", sampling=SamplingParams(), **body.turn_fields())
        return {"input_tokens": len(await encode_turn(turn, context))}


async def _write(call: ChatCall, rid: str, body: MessagesRequest, context: Context, out: sse.Writer) -> None:
    form = MessageEvents(body)
    await out.write(b"".join(form.start(rid, context.model_name, len(call.input_ids))))

    def take(events: Sequence[ChatEvent]) -> asyncio.Future | None:
        return out.write_now(b"".join(itertools.chain.from_iterable(map(form.feed, events))))

    await call.deliver(take, context.stream_interval)
