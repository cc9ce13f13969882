"""Requests of Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from sgjax.types import SamplingParams
from sgjax_server.chat.tools import Tool, ToolChoice
from sgjax_server.schemas.anthropic_content import AssistantMessage, Message, Texts, template_messages
from sgjax_server.schemas.common import ApiModel

_SAMPLING_FIELDS = ("temperature", "top_p", "top_k")


class ToolDefinition(ApiModel):
    """A tool that the client runs. Those that Anthropic runs itself have other types, and are refused."""

    IGNORED = frozenset({"cache_control", "eager_input_streaming"})
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"allowed_callers": (["direct"],)}

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def tool(self) -> Tool:
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.input_schema,
            strict=bool(self.strict),
        )


class ToolChoiceField(ApiModel):
    MODES: ClassVar[Mapping[str, Literal["auto", "none", "required", "named"]]] = {
        "auto": "auto",
        "any": "required",
        "tool": "named",
        "none": "none",
    }

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(ApiModel):
    """Whether the model thinks first. How long it does (`budget_tokens`) it decides itself, within `max_tokens`."""

    IGNORED = frozenset({"budget_tokens"})

    type: Literal["enabled", "adaptive", "disabled"]
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(ApiModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(ApiModel):
    IGNORED = frozenset({"effort"})

    format: OutputFormat | None = None


class CountTokensRequest(ApiModel):
    """A conversation: what makes the prompt."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    )
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        "continue_final_message": "messages",
        "input_ids": "messages",
        "json_schema": "output_config",
        "max_new_tokens": "max_tokens",
        "stop": "stop_sequences",
        "text": "messages",
    }
    IGNORED = frozenset(
        {"cache_control", "context_management", "diagnostics", "inference_geo", "metadata", "service_tier", "speed"}
    )

    model: str = "default"
    messages: list[Message] = Field(min_length=1)
    system: Texts | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoiceField | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"

    def turn_fields(self) -> dict[str, Any]:
        """What a `ChatTurn` takes from here: the conversation, the tools, the options of the template.

        A model that can do without thinking does so unless it is asked for. A final message of the assistant's is one
        to go on with.
        """
        continues = isinstance(self.messages[-1], AssistantMessage)
        choice = self.tool_choice or ToolChoiceField(type="auto")
        return {
            "messages": template_messages(self.system or [], self.messages),
            "tools": tuple(definition.tool() for definition in self.tools or ()),
            "tool_choice": ToolChoice(ToolChoiceField.MODES[choice.type], choice.name),
            "parallel_tool_calls": not choice.disable_parallel_tool_use,
            "template_options": {
                "enable_thinking": self.thinking is not None and self.thinking.type != "disabled",
                "continue_final_message": continues,
                "add_generation_prompt": not continues,
            },
        }


class MessagesRequest(CountTokensRequest):
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
    )
    max_tokens: int = Field(ge=0)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Sampling parameters; what the request leaves open comes from `defaults` (the model's)."""
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if getattr(self, name) is not None}
        if self.output_config is not None and self.output_config.format is not None:
            given["json_schema"] = self.output_config.format.schema_
        return SamplingParams(
            **{**defaults, **given, "max_new_tokens": self.max_tokens, "stop": self.stop_sequences or ()}
        )
