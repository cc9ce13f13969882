"""The items that a conversation of the Responses API consists of, as requests bring them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from sgjax_server.schemas.common import ApiModel


class TextPart(ApiModel):
    """A piece of a message, of either side's. Its log-probabilities and annotations say nothing to the model."""

    IGNORED = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(ApiModel):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


def text_of(content: str | list[TextPart | RefusalPart]) -> str:
    """A content's parts, joined."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Item(ApiModel):
    IGNORED = frozenset({"phase"})

    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class Message(_Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class FunctionCall(_Item):
    IGNORED = _Item.IGNORED | {"caller", "parsed_arguments"}

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(_Item):
    IGNORED = _Item.IGNORED | {"caller"}

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]


class ReasoningText(ApiModel):
    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class Reasoning(_Item):
    """What the model thought. Only `content` is read: what is encrypted elsewhere cannot be, and a summary is less."""

    IGNORED = _Item.IGNORED | {"encrypted_content"}

    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None


def _item_type(value: Any) -> str:
    """A message may leave its type out."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_item_type),
]
