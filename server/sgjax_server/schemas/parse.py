"""Requests of SGLang's routes that split a text which was generated before."""

from __future__ import annotations

from sgjax_server.chat.parsers.reasoning import ReasoningFormatName
from sgjax_server.chat.tool_formats import ToolFormatName
from sgjax_server.schemas.common import ApiModel
from sgjax_server.schemas.tools import ToolParam


class ParseFunctionCallRequest(ApiModel):
    """A text that may hold calls of `tools`. Without a parser, the server's reads it."""

    text: str
    tools: list[ToolParam]
    tool_call_parser: ToolFormatName | None = None


class SeparateReasoningRequest(ApiModel):
    """A text that may begin with reasoning. Without a parser, the server's reads it."""

    text: str
    reasoning_parser: ReasoningFormatName | None = None
