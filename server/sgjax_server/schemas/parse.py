"""Requests of SGLang's routes that split a text which was generated before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sgjax_server.chat.parsers.reasoning import ReasoningFormatName
from sgjax_server.chat.tool_formats import ToolFormatName
from sgjax_server.schemas.common import ApiModel
from sgjax_server.schemas.tools import ToolParam


class ParseFunctionCallRequest(ApiModel):
    """A text that may hold calls of `tools`. Without a parser, the server's reads it."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "text": '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>',
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
            "tool_call_parser": "hermes",
        },
    )
    text: str
    tools: list[ToolParam]
    tool_call_parser: ToolFormatName | None = None


class SeparateReasoningRequest(ApiModel):
    """A text that may begin with reasoning. Without a parser, the server's reads it."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "<think>Hm.</think>Yes.", "reasoning_parser": "qwen3"},
    )
    text: str
    reasoning_parser: ReasoningFormatName | None = None
