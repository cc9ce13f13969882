"""OpenAI's chat completions."""

from __future__ import annotations

import functools
import time
import uuid
from typing import Any

from fastapi import APIRouter, Response

from sgjax_server import sse
from sgjax_server.calls import fields_named
from sgjax_server.chat.turn import (
    ChatAnswer,
    ChatCall,
    ChatEvent,
    ChatTurn,
    Ended,
    ReasoningDelta,
    TextDelta,
    ToolArguments,
    ToolCallStarted,
    start_turn,
)
from sgjax_server.openai_format import Usage, chat_logprobs, finish_fields, receipt_fields
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.openai import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatToolCall,
)
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.openai import ChatCompletionRequest
from sgjax_server.tokens import TokenTexts

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", responses=sse.OPENAI.responses(ChatCompletion, ChatCompletionChunk))
async def chat_completions(body: ChatCompletionRequest, context: ContextDep) -> Response:
    """Answers a conversation, as OpenAI's API does."""
    with fields_named(body.param_names):
        turn = _turn(body, context)
        call = await start_turn(turn, context)
    head = {"id": turn.rid, "created": int(time.time()), "model": context.model_name}
    if body.stream:
        chunks = _Chunks(head, body, context.token_texts)
        return sse.EventStream(functools.partial(_write, call, chunks, context.stream_interval), call.close)
    answers = await call.answers(context.receive)
    usage = Usage()
    for answer in answers:
        if answer.receipt is not None:
            usage.add(answer.index, answer.receipt, answer.num_reasoning_tokens)
    choices = [_choice(answer, context, with_receipt=body.return_receipt) for answer in answers]
    sglext = usage.sglext(wanted=bool(body.return_cached_tokens_details))
    head["object"] = "chat.completion"
    return json_response({**head, "choices": choices, "usage": usage.as_dict(), **sglext})


def _turn(body: ChatCompletionRequest, context: Context) -> ChatTurn:
    return ChatTurn(
        rid=body.rid or f"chatcmpl-{uuid.uuid4().hex}",
        messages=body.messages,
        sampling=body.sampling(context.sampling_defaults, body.max_new_tokens),
        tools=tuple(tool.tool() for tool in body.tools or ()),
        tool_choice=body.choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=body.template_options(),
        separate_reasoning=body.separate_reasoning,
        stream_reasoning=body.stream_reasoning,
        return_logprob=bool(body.logprobs),
        top_logprobs_num=body.top_logprobs or 0,
        priority=body.priority or 0,
        extra_key=namespace(body.cache_salt, body.extra_key),
    )


def _choice(answer: ChatAnswer, context: Context, *, with_receipt: bool) -> ChatChoice:
    calls = answer.tool_calls
    message: ChatMessage = {
        "role": "assistant",
        "content": answer.text or (None if calls else ""),
        "refusal": None,
        "reasoning_content": answer.reasoning or None,
    }
    if calls:
        message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in calls]
    return {
        "index": answer.index,
        "message": message,
        "logprobs": chat_logprobs(answer.logprobs, context.token_texts),
        **finish_fields(answer.finish, has_calls=bool(calls)),
        **receipt_fields(answer.receipt, wanted=with_receipt),
    }


def _call(id: str, name: str, arguments: str) -> ChatToolCall:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


async def _write(call: ChatCall, chunks: _Chunks, interval: int, out: sse.Writer) -> None:
    await call.deliver(lambda events: out.write_now(b"".join(map(chunks.of, events))), interval)
    await out.write(chunks.end())


class _Chunks:
    """Encodes the stream of a turn's choices."""

    def __init__(self, head: dict[str, Any], body: ChatCompletionRequest, texts: TokenTexts):
        self._chunk = sse.EventHead({**head, "object": "chat.completion.chunk"}).event
        self._body = body
        self._texts = texts
        self._usage = Usage()
        self._begun: set[int] = set()

    def of(self, event: ChatEvent) -> bytes:
        """The chunk that an event becomes."""
        choice = _chunk_choice(event, is_first=event.index not in self._begun, texts=self._texts)
        self._begun.add(event.index)
        if not isinstance(event, Ended) or event.receipt is None:
            return self._chunk({"choices": [choice]})
        self._usage.add(event.index, event.receipt, event.num_reasoning_tokens)
        sglext = self._usage.sglext(wanted=bool(self._body.return_cached_tokens_details))
        choice |= receipt_fields(event.receipt, wanted=self._body.return_receipt)
        return self._chunk({"choices": [choice], **sglext})

    def end(self) -> bytes:
        """What follows the last choice's end."""
        return self._chunk({"choices": [], "usage": self._usage.as_dict()}) if self._body.include_usage else b""


def _chunk_choice(event: ChatEvent, *, is_first: bool, texts: TokenTexts) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
    logprobs, finish = None, finish_fields(None)
    match event:
        case TextDelta():
            delta["content"], logprobs = event.text, event.logprobs
        case ReasoningDelta():
            delta["reasoning_content"], logprobs = event.text, event.logprobs
        case ToolCallStarted():
            delta["tool_calls"] = [{"index": event.number, **_call(event.id, event.name, "")}]
        case ToolArguments():
            delta["tool_calls"] = [{"index": event.number, "function": {"arguments": event.text}}]
        case Ended():
            finish, logprobs = finish_fields(event.finish, has_calls=event.num_tool_calls > 0), event.logprobs
    return {"index": event.index, "delta": delta, "logprobs": chat_logprobs(logprobs, texts), **finish}
