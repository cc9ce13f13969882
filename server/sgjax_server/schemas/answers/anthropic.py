"""Answers of Anthropic's Messages: messages, and the events of their streams."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from sgjax_server.schemas.errors import AnthropicErrorFields

StopReason = Literal["end_turn", "stop_sequence", "tool_use", "max_tokens", "model_context_window_exceeded"]


class AnthropicText(TypedDict):
    type: Literal["text"]
    text: str


class AnthropicThinking(TypedDict):
    """Thoughts are not signed: the signature is empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class AnthropicToolUse(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


type ContentBlock = AnthropicText | AnthropicThinking | AnthropicToolUse


class ThinkingTokens(TypedDict):
    thinking_tokens: int


class MessageUsage(TypedDict):
    """`input_tokens` are those that were not read from the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: NotRequired[ThinkingTokens]


class AnthropicMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(TypedDict):
    input_tokens: int


# --- events of streams ----------------------------------------------------------------------------------------


class MessageStart(TypedDict):
    """The message without content. All of the prompt counts as input here; `message_delta` knows what was cached."""

    type: Literal["message_start"]
    message: AnthropicMessage


class Ping(TypedDict):
    type: Literal["ping"]


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: ContentBlock


class MoreText(TypedDict):
    type: Literal["text_delta"]
    text: str


class MoreThinking(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class MoreInput(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: MoreText | MoreThinking | MoreInput


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(TypedDict):
    type: Literal["message_stop"]


class MessageFailed(TypedDict):
    type: Literal["error"]
    error: AnthropicErrorFields


type MessageEvent = (
    MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessageFailed
)
