"""Messages of Anthropic's API: whole ones, and the events of their streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sgjax.types import FinishReason, Receipt
from sgjax_server import sse
from sgjax_server.chat.turn import (
    ChatAnswer,
    ChatEvent,
    Ended,
    ReasoningDelta,
    TextDelta,
    ToolArguments,
    ToolCallStarted,
)
from sgjax_server.schemas.answers.anthropic import MessageUsage
from sgjax_server.schemas.anthropic import MessagesRequest


def message(rid: str, model: str, answer: ChatAnswer, request: MessagesRequest) -> dict[str, Any]:
    """A whole message, the answer to a request."""
    assert answer.finish is not None
    content = []
    if answer.reasoning and request.shows_thinking:
        content.append({**_EMPTY_BLOCKS["thinking"], "thinking": answer.reasoning})
    if answer.text:
        content.append({**_EMPTY_BLOCKS["text"], "text": answer.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments_object()}
        for call in answer.tool_calls
    ]
    return {
        **_head(rid, model),
        "content": content,
        **_stop_fields(answer.finish, len(answer.tool_calls), answer.receipt, request),
        "usage": _usage(answer.receipt, answer.num_reasoning_tokens),
    }


class MessageEvents:
    """Writes the stream of one message, whose blocks come one after the other."""

    def __init__(self, request: MessagesRequest):
        self._request = request
        self._index = -1
        self._open: str | None = None

    def start(self, rid: str, model: str, num_prompt_tokens: int) -> Iterator[bytes]:
        """What precedes the first block. How much was cached shows in the counts at the end, which replace these."""
        head = {**_head(rid, model), "content": [], "stop_reason": None, "stop_sequence": None}
        usage = {"input_tokens": num_prompt_tokens, **_NOTHING_CACHED, "output_tokens": 0}
        yield _event("message_start", message={**head, "usage": usage})
        yield _event("ping")

    def feed(self, event: ChatEvent) -> Iterator[bytes]:
        """What one event of the turn becomes."""
        match event:
            case TextDelta(text=text):
                yield from self._piece("text", {"type": "text_delta", "text": text})
            case ReasoningDelta(text=text):
                if self._request.shows_thinking:
                    yield from self._piece("thinking", {"type": "thinking_delta", "thinking": text})
            case ToolCallStarted(id=id, name=name):
                yield from self._begin("tool_use", {"type": "tool_use", "id": id, "name": name, "input": {}})
            case ToolArguments(text=text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case Ended(finish=finish, num_tool_calls=num_tool_calls, receipt=receipt, num_reasoning_tokens=thought):
                yield from self._end_block()
                delta = _stop_fields(finish, num_tool_calls, receipt, self._request)
                yield _event("message_delta", delta=delta, usage=_usage(receipt, thought))
                yield _event("message_stop")

    def _piece(self, kind: str, delta: dict[str, Any]) -> Iterator[bytes]:
        if self._open != kind:
            yield from self._begin(kind, _EMPTY_BLOCKS[kind])
        yield self._delta(delta)

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._end_block()
        self._index += 1
        self._open = kind
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _end_block(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._index)


# Thoughts are not signed; clients want the field.
_EMPTY_BLOCKS = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
_NOTHING_CACHED = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _event(kind: str, **fields: Any) -> bytes:
    return sse.named_event(kind, {"type": kind, **fields})


def _head(rid: str, model: str) -> dict[str, Any]:
    return {"id": rid, "type": "message", "role": "assistant", "model": model}


def _stop_fields(
    finish: FinishReason, num_tool_calls: int, receipt: Receipt | None, request: MessagesRequest
) -> dict[str, Any]:
    """An answer that was ended on the way is incomplete, which clients know as "max_tokens"."""
    sequence = finish.matched if isinstance(finish.matched, str) else None
    if finish.kind == "length" and receipt is not None and receipt.completion_tokens < request.max_tokens:
        reason = "model_context_window_exceeded"
    elif finish.kind != "stop":
        reason = "max_tokens"
    elif num_tool_calls:
        reason = "tool_use"
    else:
        reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(receipt: Receipt | None, num_reasoning_tokens: int) -> MessageUsage:
    """Anthropic counts prompt tokens that were read from the cache apart from the others, and those written too."""
    receipt = receipt or Receipt()
    return {
        "input_tokens": receipt.prompt_tokens - receipt.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": receipt.cached_tokens,
        "output_tokens": receipt.completion_tokens,
        "output_tokens_details": {"thinking_tokens": num_reasoning_tokens},
    }
