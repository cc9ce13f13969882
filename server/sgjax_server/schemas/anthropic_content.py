"""What messages of Anthropic's API hold, and how chat templates read the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sgjax_server.schemas.common import ApiModel


def _as_blocks(content: Any) -> Any:
    """Text alone is short for one block of it."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Block(ApiModel):
    IGNORED = frozenset({"cache_control", "citations"})


class TextBlock(_Block):
    type: Literal["text"]
    text: str


Texts = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]
"""A text, or blocks of it."""


class ThinkingBlock(_Block):
    """What the model thought in an earlier turn. Whether it sees it again is its chat template's decision."""

    IGNORED = _Block.IGNORED | {"signature"}

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(_Block):
    """Thoughts that only Anthropic could read; the model is shown nothing of them."""

    IGNORED = _Block.IGNORED | {"data"}

    type: Literal["redacted_thinking"]


class ToolUseBlock(_Block):
    IGNORED = _Block.IGNORED | {"caller"}

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(_Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool = False

    @property
    def text(self) -> str:
        """Templates have no field for errors, so the text says that it is one."""
        text = joined(self.content or [])
        return f"Error: {text}" if self.is_error else text


_UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
_AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type")
]


class UserMessage(ApiModel):
    role: Literal["user"]
    content: Annotated[list[_UserBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_UserBlock])]


class AssistantMessage(ApiModel):
    role: Literal["assistant"]
    content: Annotated[
        list[_AssistantBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_AssistantBlock])
    ]


class SystemMessage(ApiModel):
    """Instructions in the middle of a conversation; many templates refuse them there."""

    role: Literal["system"]
    content: Texts


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


def joined(blocks: Sequence[TextBlock]) -> str:
    """Blocks as one text, a line apart."""
    return "\n".join(block.text for block in blocks)


def template_messages(system: Sequence[TextBlock], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation in the form of OpenAI's chat API. Neighbours of one role are one message, as Anthropic has it."""
    result: list[dict[str, Any]] = [{"role": "system", "content": joined(system)}] if system else []
    tool_names: dict[str, str] = {}
    for role, neighbours in itertools.groupby(messages, key=lambda message: message.role):
        blocks: list[Any] = [block for message in neighbours for block in message.content]
        if role == "assistant":
            tool_names |= {block.id: block.name for block in blocks if isinstance(block, ToolUseBlock)}
            result.append(_assistant_message(blocks))
        else:
            result += _other_messages(role, blocks, tool_names)
    return result


def _assistant_message(blocks: Sequence[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": joined([block for block in blocks if isinstance(block, TextBlock)]),
    }
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return message


def _other_messages(role: str, blocks: Sequence[Any], tool_names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A tool's result is a message of its own, between those of the text around it."""
    for is_text, run in itertools.groupby(blocks, key=lambda block: isinstance(block, TextBlock)):
        if is_text:
            yield {"role": role, "content": joined(list(run))}
        else:
            for result in run:
                message = {"role": "tool", "tool_call_id": result.tool_use_id, "content": result.text}
                name = tool_names.get(result.tool_use_id)
                yield message if name is None else {**message, "name": name}
