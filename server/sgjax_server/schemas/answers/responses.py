"""Answers of OpenAI's Responses: responses, their items, and the events of their streams."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from sgjax_server.schemas.answers.openai import ChatToken, Cost

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ItemText(TypedDict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: NotRequired[list[Any]]
    logprobs: NotRequired[list[ChatToken]]


class ItemRefusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["user", "assistant", "system", "developer"]
    content: list[ItemText | ItemRefusal]


class FunctionCallItem(TypedDict):
    """`arguments` are JSON text, as the model wrote it."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(TypedDict):
    id: str
    type: Literal["function_call_output"]
    status: ItemStatus
    call_id: str
    output: str | list[ItemText | ItemRefusal]


class Thought(TypedDict):
    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(TypedDict):
    """What the model thought, whole. There are no summaries but those that a request brought."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Thought]
    content: NotRequired[list[Thought]]


type ResponseItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[ResponseItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseFailure(TypedDict):
    code: str
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ReasoningSettings(TypedDict):
    effort: str | None
    summary: None


class TextFormatSettings(TypedDict):
    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str]
    description: NotRequired[str]
    schema: NotRequired[dict[str, Any] | bool]
    strict: NotRequired[bool]


class TextSettings(TypedDict):
    format: TextFormatSettings


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseBody(TypedDict):
    """A response as far as it is. It repeats what was asked for, with what the model's defaults made of it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[ResponseItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningSettings
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: TextSettings
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: None
    sgjax: NotRequired[Cost]


class ResponseDeleted(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


# --- events of streams ----------------------------------------------------------------------------------------


class Event(TypedDict):
    """`sequence_number` counts from 0."""

    sequence_number: int


class ResponseChanged(Event):
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseBody


class ItemChanged(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: ResponseItem


class ItemEvent(Event):
    item_id: str
    output_index: int


class PartChanged(ItemEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: ItemText | Thought


class TextAdded(ItemEvent):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[ChatToken]


class TextDone(ItemEvent):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[ChatToken]


class ThoughtAdded(ItemEvent):
    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ThoughtDone(ItemEvent):
    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


class ArgumentsAdded(ItemEvent):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(ItemEvent):
    type: Literal["response.function_call_arguments.done"]
    arguments: str
    name: str


class StreamFailed(TypedDict):
    """The last event of a stream that the server ends."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


type ResponseEvent = (
    ResponseChanged
    | ItemChanged
    | PartChanged
    | TextAdded
    | TextDone
    | ThoughtAdded
    | ThoughtDone
    | ArgumentsAdded
    | ArgumentsDone
    | StreamFailed
)
"""Whole items and responses come too; each event is also named by its type."""
