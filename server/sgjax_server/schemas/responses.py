"""Requests of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticSerializationError, to_json

from sgjax.types import RequestError, SamplingParams
from sgjax_server.chat.tools import Tool, ToolChoice
from sgjax_server.schemas.common import ApiModel
from sgjax_server.schemas.openai import MAX_TOP_LOGPROBS
from sgjax_server.schemas.response_items import InputItem

_SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)


class TextFormat(ApiModel):
    """What the answer must be; a schema is always enforced, whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _only_what_the_type_has(self) -> Self:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise RequestError("format.schema", "is for the type 'json_schema', which needs it")
        return self

    @property
    def json_schema(self) -> dict[str, Any] | bool | None:
        """The grammar; None is free text."""
        return {"type": "object"} if self.type == "json_object" else self.schema_


class TextOptions(ApiModel):
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ReasoningOptions(ApiModel):
    """A hint for the chat template, where it reads one. Summaries are never written: `content` has the whole."""

    IGNORED = frozenset({"summary", "generate_summary"})

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @property
    def template_options(self) -> dict[str, Any]:
        if self.effort is None:
            return {}
        return {"reasoning_effort": self.effort, "enable_thinking": self.effort != "none"}


class FunctionTool(ApiModel):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """Raises RequestError for a name or a schema that no call could have."""
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.parameters,
            strict=bool(self.strict),
        )


class FunctionRef(ApiModel):
    type: Literal["function"]
    name: str


class AllowedTools(ApiModel):
    """The model sees all tools of the request, but may call only these; here it sees only these."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: list[FunctionRef] = Field(min_length=1)


def _choice_form(value: Any) -> str:
    if isinstance(value, str):
        return "mode"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "allowed" if kind == "allowed_tools" else "named"


ToolChoiceParam = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[FunctionRef, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_choice_form),
]


class ResponsesRequest(ApiModel):
    """A response to create. `input` is a text of the user's, or items in order."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"input": "Why is the sky blue?", "max_output_tokens": 64},)
    IGNORED = frozenset(
        {"user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "stream_options"}
        | {"prompt_cache_options", "max_tool_calls"}  # the last counts calls of tools that the server itself has
    )
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"truncation": ("disabled",)}
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "input_ids": "input",
        "max_new_tokens": "max_output_tokens",
        "top_logprobs_num": "top_logprobs",
        "json_schema": "text",
        "text": "input",
    }

    model: str = "default"
    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None

    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    return_receipt: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("input", "instructions", "metadata", "tools", "text"):  # which the response repeats
            try:
                to_json(getattr(self, name))
            except PydanticSerializationError:
                raise RequestError(name, "is not valid Unicode") from None
        if self.background and self.stream:
            raise RequestError("background", "cannot be streamed: ask for the response by its id")
        if self.background and self.store is False:
            raise RequestError("background", "needs store: the response is asked for by its id")
        return self

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Sampling parameters; what the request leaves open comes from `defaults` (the model's)."""
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        given = {name: value for name, value in given.items() if value is not None}
        if self.text is not None and self.text.format is not None:
            given["json_schema"] = self.text.format.json_schema
        return SamplingParams(**{**defaults, **given, "max_new_tokens": self.max_output_tokens})

    def template_options(self) -> dict[str, Any]:
        """Keyword arguments for the chat template."""
        effort = self.reasoning.template_options if self.reasoning is not None else {}
        return {**effort, **(self.chat_template_kwargs or {})}

    def tools_and_choice(self) -> tuple[tuple[Tool, ...], ToolChoice]:
        """Raises RequestError where a choice names no tool of the request."""
        tools = tuple(tool.tool() for tool in self.tools or ())
        match self.tool_choice:
            case None:
                return tools, ToolChoice()
            case FunctionRef(name=name):
                return tools, ToolChoice("named", name)
            case AllowedTools(mode=mode, tools=allowed):
                names = {one.name for one in allowed}
                if unknown := names - {tool.name for tool in tools}:
                    raise RequestError("tool_choice", f"no tool has the name {min(unknown)!r}")
                return tuple(tool for tool in tools if tool.name in names), ToolChoice(mode)
            case mode:
                return tools, ToolChoice(mode)
