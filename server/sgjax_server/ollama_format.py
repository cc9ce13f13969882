"""Answers of Ollama's API: whole ones, and the lines of their streams."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sgjax.types import FinishReason, Receipt, TokenLogprobs
from sgjax_server.chat.turn import (
    ChatAnswer,
    ChatEvent,
    Ended,
    ReasoningDelta,
    TextDelta,
    ToolArguments,
    ToolCall,
    ToolCallStarted,
)
from sgjax_server.openai_format import chat_logprobs
from sgjax_server.tokens import TokenTexts

Piece = Callable[[str, str, Sequence[ToolCall]], dict[str, Any]]
"""How a route shows text, thoughts and calls: `chat_piece` or `generate_piece`."""


def chat_piece(text: str, thinking: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments_object()}} for call in calls
        ]
    return {"message": message}


def generate_piece(text: str, thinking: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """Prompts come without tools."""
    return {"response": text, "thinking": thinking} if thinking else {"response": text}


class AnswerFormat:
    """Builds the answer to one request, whole or in pieces. A call of a tool is shown when it is complete."""

    def __init__(self, model: str, piece: Piece, texts: TokenTexts):
        self._model = model
        self._piece = piece
        self._texts = texts
        self._call: ToolCall | None = None

    def loaded(self) -> dict[str, Any]:
        """The answer to a request for nothing, by which clients have a model loaded."""
        return {**self._part(), "done_reason": "load", "done": True}

    def whole(self, answer: ChatAnswer) -> dict[str, Any]:
        assert answer.finish is not None
        part = self._part(answer.text, answer.reasoning, answer.tool_calls, answer.logprobs)
        return {**part, **_end_fields(answer.finish, answer.receipt)}

    def feed(self, event: ChatEvent) -> Iterator[dict[str, Any]]:
        """What one event of the turn becomes."""
        if isinstance(event, ToolArguments):
            assert self._call is not None
            self._call.arguments += event.text
            return
        if self._call is not None:
            yield {**self._part(calls=[self._call]), "done": False}
            self._call = None
        match event:
            case TextDelta(text=text, logprobs=logprobs):
                yield {**self._part(text, logprobs=logprobs), "done": False}
            case ReasoningDelta(text=text, logprobs=logprobs):
                yield {**self._part(thinking=text, logprobs=logprobs), "done": False}
            case ToolCallStarted(id=id, name=name):
                self._call = ToolCall(id, name)
            case Ended(finish=finish, receipt=receipt, logprobs=logprobs):
                yield {**self._part(logprobs=logprobs), **_end_fields(finish, receipt)}

    def _part(
        self,
        text: str = "",
        thinking: str = "",
        calls: Sequence[ToolCall] = (),
        logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> dict[str, Any]:
        part = {"model": self._model, "created_at": timestamp(), **self._piece(text, thinking, calls)}
        if (shown := chat_logprobs(logprobs, self._texts)) is not None:
            part["logprobs"] = shown["content"]
        return part


def timestamp(seconds: float | None = None) -> str:
    """A time since the epoch, or now, as Ollama writes it."""
    now = datetime.datetime.now(datetime.UTC)
    return (now if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)).isoformat()


def _end_fields(finish: FinishReason, receipt: Receipt | None) -> dict[str, Any]:
    """Durations add up to the whole. What Ollama spends on loading a model, a request spends in the queue here.

    An answer that was ended on the way is incomplete, which clients know as "length".
    """
    receipt = receipt or Receipt()
    first_s = receipt.ttft_s or receipt.e2e_s  # it may end before its first token
    return {
        "done": True,
        "done_reason": "stop" if finish.kind == "stop" else "length",
        "total_duration": _nanoseconds(receipt.e2e_s),
        "load_duration": _nanoseconds(receipt.queue_s),
        "prompt_eval_count": receipt.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(first_s - receipt.queue_s),
        "eval_count": receipt.completion_tokens,
        "eval_duration": _nanoseconds(receipt.e2e_s - first_s),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
