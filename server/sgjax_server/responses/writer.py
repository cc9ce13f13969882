"""A generated turn as items of the Responses API, with the events that tell how they come about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sgjax_server.chat.events import (
    ChatEvent,
    Ended,
    Logprobs,
    ReasoningDelta,
    TextDelta,
    ToolArguments,
    ToolCallStarted,
)
from sgjax_server.openai_format import chat_logprobs
from sgjax_server.responses.conversation import Item, new_id
from sgjax_server.tokens import TokenTexts

Event = dict[str, Any]


class ItemWriter:
    """Turns the events of one sample into items; one is open at a time.

    Attributes:
      items: those that are complete. end: the sample's end, when it has come.
    """

    def __init__(self, texts: TokenTexts):
        self.items: list[Item] = []
        self.end: Ended | None = None
        self._texts = texts
        self._open: Item | None = None

    def feed(self, event: ChatEvent) -> Iterator[Event]:
        """The API's events that one of the turn's comes to, without their numbers."""
        match event:
            case ReasoningDelta(text=text):
                yield from self._text("reasoning", text)
            case TextDelta(text=text, logprobs=logprobs):
                yield from self._text("message", text, logprobs)
            case ToolCallStarted():
                yield from self._begin(
                    {
                        "id": new_id("fc"),
                        "type": "function_call",
                        "status": "in_progress",
                        "call_id": event.id,
                        "name": event.name,
                        "arguments": "",
                    }
                )
            case ToolArguments(text=text):
                assert self._open is not None
                self._open["arguments"] += text
                yield self._event("response.function_call_arguments.delta", delta=text)
            case Ended():
                self.end = event
                yield from self._finish()
                if not self.items:  # a response without any output would say that there is none to come
                    yield from self._begin(_message())
                    yield from self._begin_part()
                    yield from self._finish()

    def _text(self, kind: str, text: str, logprobs: Logprobs | None = None) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._begin(_message() if kind == "message" else _reasoning())
            yield from self._begin_part()
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        if kind == "reasoning":
            yield self._event("response.reasoning_text.delta", content_index=0, delta=text)
            return
        shown = chat_logprobs(logprobs, self._texts)
        tokens = shown["content"] if shown is not None else []
        part["logprobs"] += tokens
        yield self._event("response.output_text.delta", content_index=0, delta=text, logprobs=tokens)

    def _begin(self, item: Item) -> Iterator[Event]:
        yield from self._finish()
        self._open = item
        yield self._item_event("response.output_item.added", {**item, "content": []} if "content" in item else item)

    def _begin_part(self) -> Iterator[Event]:
        assert self._open is not None
        yield self._event("response.content_part.added", content_index=0, part=_copy(self._open["content"][0]))

    def _finish(self) -> Iterator[Event]:
        """Completes the open item; the last of an answer that was cut off is incomplete."""
        item = self._open
        if item is None:
            return
        is_cut = self.end is not None and self.end.finish.kind != "stop"
        item["status"] = "incomplete" if is_cut else "completed"
        if item["type"] == "function_call":
            yield self._event("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part = item["content"][0]
            if item["type"] == "reasoning":
                yield self._event("response.reasoning_text.done", content_index=0, text=part["text"])
            else:
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", content_index=0, **done)
            yield self._event("response.content_part.done", content_index=0, part=part)
        yield self._item_event("response.output_item.done", item)
        self.items.append(item)
        self._open = None

    def _event(self, type: str, **fields: Any) -> Event:
        assert self._open is not None
        return {"type": type, "item_id": self._open["id"], "output_index": len(self.items), **fields}

    def _item_event(self, type: str, item: Item) -> Event:
        return {"type": type, "output_index": len(self.items), "item": dict(item)}


def _message() -> Item:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": [part]}


def _reasoning() -> Item:
    part = {"type": "reasoning_text", "text": ""}
    return {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": [part]}


def _copy(part: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in part.items()}
