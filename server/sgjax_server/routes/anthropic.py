"""Anthropic's Messages API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter, Response

from sgjax.types import SamplingParams
from sgjax_server import sse
from sgjax_server.anthropic_format import MessageEvents, message
from sgjax_server.calls import fields_named
from sgjax_server.chat.turn import ChatCall, ChatTurn, encode_turn, start_turn
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
        return sse.EventStream(_events(call, rid, body, context), call.close, sse.ANTHROPIC)
    (answer,) = await call.answers(context.receive)
    return json_response(message(rid, context.model_name, answer, body))


@router.post("/count_tokens")
async def count_tokens(body: CountTokensRequest, context: ContextDep) -> TokenCount:
    """How long the prompt of such a conversation is; nothing is generated."""
    with fields_named(body.PARAM_NAMES):
        turn = ChatTurn(rid="count_tokens", sampling=SamplingParams(), **body.turn_fields())
        return {"input_tokens": len(await encode_turn(turn, context))}


async def _events(call: ChatCall, rid: str, body: MessagesRequest, context: Context) -> AsyncIterator[bytes]:
    form = MessageEvents(body)
    for encoded in form.start(rid, context.model_name, len(call.input_ids)):
        yield encoded
    async for event in call.events(context.stream_interval):
        for encoded in form.feed(event):
            yield encoded
