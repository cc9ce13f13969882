"""A conversation as items of the Responses API, and as the messages that chat templates read."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sgjax_server.schemas.response_items import (
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    Message,
    Reasoning,
    text_of,
)

Item = dict[str, Any]
"""An item in the form in which the API gives it."""


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: str | Sequence[InputItem]) -> list[Item]:
    """A request's input as the API lists it: every item has an id, and every text is a part."""
    if isinstance(given, str):
        given = [Message(role="user", content=given)]
    return [_listed(item) for item in given]


def _listed(item: InputItem) -> Item:
    shown = item.model_dump(exclude_none=True, include=set(type(item).model_fields))
    prefix = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}[item.type]
    shown |= {"id": item.id or new_id(prefix), "status": item.status or "completed"}
    if isinstance(item, Message):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts = [{"type": kind, "text": item.content}] if isinstance(item.content, str) else shown["content"]
        shown["content"] = [{**part, "annotations": []} if part["type"] == "output_text" else part for part in parts]
    if isinstance(item, Reasoning):
        shown.setdefault("summary", [])
    return shown


class Conversation:
    """Messages made of items, in order. What an assistant thinks, says and calls in a row is one message."""

    def __init__(self, instructions: str | None):
        self.messages: list[dict[str, Any]] = []
        self._thought = ""
        if instructions:
            self.messages.append({"role": "system", "content": instructions})

    def add(self, items: Iterable[InputItem]) -> None:
        for item in items:
            match item:
                case Message(role="assistant"):
                    self._assistant(starts=True)["content"] = text_of(item.content)
                case Message():
                    self._other(item.role, text_of(item.content))
                case Reasoning():
                    self._thought += "".join(part.text for part in item.content or ())
                case FunctionCall():
                    function = {"name": item.name, "arguments": item.arguments}
                    call = {"id": item.call_id, "type": "function", "function": function}
                    self._assistant().setdefault("tool_calls", []).append(call)
                case FunctionCallOutput():
                    message = {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
                    self.messages.append(message)

    def _assistant(self, *, starts: bool = False) -> dict[str, Any]:
        """The message that the assistant is at, a new one where it has spoken already."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or (starts and (last["content"] or "tool_calls" in last)):
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        if self._thought:
            last["reasoning_content"] = last.get("reasoning_content", "") + self._thought
            self._thought = ""
        return last

    def _other(self, role: str, text: str) -> None:
        self._thought = ""  # nothing followed from it
        role = "system" if role == "developer" else role
        if role == "system" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] += f"\n\n{text}"  # most templates take one, at the beginning
        else:
            self.messages.append({"role": role, "content": text})
