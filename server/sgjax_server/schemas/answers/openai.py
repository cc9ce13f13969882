"""Answers of OpenAI's chat completions and completions, and of its list of models."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from sgjax.types import Receipt


class Ending(TypedDict):
    """Why a choice has ended, if it has. `finish_message`: why it was ended on the way."""

    finish_reason: Literal["stop", "length", "tool_calls"] | None
    matched_stop: NotRequired[int | str | None]
    finish_message: NotRequired[str | None]


class Cost(TypedDict):
    """With `return_receipt`."""

    receipt: Receipt


class Costing(TypedDict):
    sgjax: NotRequired[Cost]


class Choice(Ending, Costing):
    index: int


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class OpenAIUsage(TypedDict):
    """A prompt counts once, however many samples were drawn from it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class CachedTokensDetails(TypedDict):
    device: int


class SGLangExtension(TypedDict):
    """With `return_cached_tokens_details`."""

    cached_tokens_details: CachedTokensDetails


class Answer(TypedDict):
    """What whole answers and the chunks of streams have in common."""

    id: str
    created: int
    model: str
    sglext: NotRequired[SGLangExtension]


# --- chat completions -----------------------------------------------------------------------------------------


class LikelyToken(TypedDict):
    token: str
    bytes: list[int]
    logprob: float | None


class ChatToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    content: list[ChatToken]
    refusal: None


class ChatFunctionCall(TypedDict):
    """`arguments` are JSON text, as the model wrote it."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: ChatFunctionCall


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatChoice(Choice):
    message: ChatMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: OpenAIUsage


class FunctionPiece(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallPiece(TypedDict):
    """The first of a call has its id and name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallPiece]


class ChatChunkChoice(Choice):
    delta: ChatDelta
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(Answer):
    """One event of a stream. The last has no choices but `usage`, with `stream_options.include_usage`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[OpenAIUsage]


# --- completions ----------------------------------------------------------------------------------------------


class TextLogprobs(TypedDict):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float | None] | None]


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None


class Completion(Answer):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: OpenAIUsage


class CompletionChunk(Answer):
    """One event of a stream. The last has no choices but `usage`, with `stream_options.include_usage`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: NotRequired[OpenAIUsage]


# --- models ---------------------------------------------------------------------------------------------------


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]
