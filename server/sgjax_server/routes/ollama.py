"""Ollama's API: what generates."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Sequence

from fastapi import Response

from sgjax.types import Request, RequestError
from sgjax_server import sse
from sgjax_server.calls import Call, encode, fields_named, started, within_context
from sgjax_server.chat.reader import SampleReader
from sgjax_server.chat.turn import ChatCall, ChatEvent, ChatTurn, start_turn
from sgjax_server.ollama_format import AnswerFormat, chat_piece, generate_piece
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.routes.ollama_models import model_tag, ollama_router
from sgjax_server.schemas.answers.ollama import OllamaChat, OllamaGenerated
from sgjax_server.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest

router = ollama_router()


@router.post("/chat", responses=sse.OLLAMA.responses(OllamaChat, OllamaChat))
async def chat(body: OllamaChatRequest, context: ContextDep) -> Response:
    """Answers a conversation, as Ollama does. It streams unless told not to; without messages it only says "load"."""
    form = AnswerFormat(model_tag(context), chat_piece, context.token_texts)
    if not body.messages:
        return json_response(form.loaded())
    call = await _start(body, context)
    return await _answer(call, form, context, streams=body.streams)


@router.post("/generate", responses=sse.OLLAMA.responses(OllamaGenerated, OllamaGenerated))
async def generate(body: OllamaGenerateRequest, context: ContextDep) -> Response:
    """Answers a prompt, as Ollama does. It streams unless told not to; without a prompt it only says "load"."""
    form = AnswerFormat(model_tag(context), generate_piece, context.token_texts)
    if not body.prompt:
        return json_response(form.loaded())
    if body.raw and body.system:
        raise RequestError("system", "does not go with raw")
    is_raw = body.raw or not (body.system or context.engine.tokenizer.chat_templates)
    call = await (_start_raw(body, context) if is_raw else _start(body, context))
    return await _answer(call, form, context, streams=body.streams)


async def _start(body: OllamaChatRequest | OllamaGenerateRequest, context: Context) -> ChatCall:
    with fields_named(body.PARAM_NAMES):
        turn = ChatTurn(
            rid=_new_id(),
            sampling=body.sampling(context.sampling_defaults),
            clip_to_context=True,
            return_logprob=body.logprobs,
            top_logprobs_num=body.top_logprobs,
            **body.turn_fields(),
        )
        return await start_turn(turn, context)


async def _start_raw(body: OllamaGenerateRequest, context: Context) -> ChatCall:
    """The prompt as it is, and the output too."""
    with fields_named(body.PARAM_NAMES):
        (input_ids,) = await encode(context.engine, [body.prompt])
        sampling = body.sampling(context.sampling_defaults)
        request = Request(
            rid=_new_id(),
            input_ids=tuple(input_ids),
            sampling=within_context(sampling, len(input_ids), context.engine.info.context_length),
            return_logprob=body.logprobs,
            top_logprobs_num=body.top_logprobs,
        )
        call = Call(context, [request])
        await started(call, context.receive)
    return ChatCall(call, input_ids, functools.partial(SampleReader, formats=(), new_id=str))


def _new_id() -> str:
    return f"ollama-{uuid.uuid4().hex}"


async def _answer(call: ChatCall, form: AnswerFormat, context: Context, *, streams: bool) -> Response:
    if streams:
        body = functools.partial(_write, call, form, context.stream_interval)
        return sse.EventStream(body, call.close, sse.OLLAMA)
    (answer,) = await call.answers(context.receive)
    return json_response(form.whole(answer))


async def _write(call: ChatCall, form: AnswerFormat, interval: int, out: sse.Writer) -> None:
    def take(events: Sequence[ChatEvent]) -> asyncio.Future | None:
        return out.write_now(b"".join([sse.line(part) for event in events for part in form.feed(event)]))

    await call.deliver(take, interval)
