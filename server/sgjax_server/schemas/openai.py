"""Requests of the OpenAI API, with SGLang's further sampling fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sgjax.types import RequestError, SamplingParams
from sgjax_server.chat.tools import ToolChoice
from sgjax_server.schemas.common import ApiModel, Prompt, RequestId
from sgjax_server.schemas.structured import GrammarFields
from sgjax_server.schemas.tools import NamedTool, ToolParam

MAX_TOP_LOGPROBS = 20
MAX_BEST_OF = 20

# Fields whose name in this API differs from SamplingParams'.
_RENAMED = {"min_tokens": "min_new_tokens"}
_SAMPLING_FIELDS = (
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "n",
    "no_stop_trim",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_regex",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
)

_TEMPLATE_FIELDS = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"})


class StreamOptions(ApiModel):
    IGNORED = frozenset({"include_obfuscation"})

    include_usage: bool = False


class _GenerationRequest(GrammarFields):
    """The fields of chat completions and completions alike. None means unspecified."""

    PARAM_NAMES: ClassVar[Mapping[str, str]] = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    IGNORED = GrammarFields.IGNORED | frozenset(
        {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
        | {"prediction", "custom_labels"}
    )
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "modalities": (["text"],),
    }

    model: str = "default"
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    rid: RequestId | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    return_receipt: bool = False
    return_cached_tokens_details: bool | None = None

    @property
    def param_names(self) -> Mapping[str, str]:
        """This request's field for each of the engine's that has another name."""
        grammar = self.grammar
        return self.PARAM_NAMES if grammar is None else {**self.PARAM_NAMES, grammar.param: grammar.field}

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: Mapping[str, Any], max_new_tokens: int | None) -> SamplingParams:
        """Sampling parameters; what the request leaves open comes from `defaults` (the model's)."""
        given = {_RENAMED.get(name, name): getattr(self, name) for name in _SAMPLING_FIELDS}
        given = {name: value for name, value in given.items() if value is not None}
        if (grammar := self.grammar) is not None:
            given[grammar.param] = grammar.value
        return SamplingParams(**{**defaults, **given, "max_new_tokens": max_new_tokens})


class ChatCompletionRequest(_GenerationRequest):
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "max_completion_tokens": 64,
            "temperature": 0.7,
        },
    )
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        **_GenerationRequest.PARAM_NAMES,
        "input_ids": "messages",
        "text": "messages",
        "top_logprobs_num": "top_logprobs",
    }

    # The chat template's renderer knows what a message may be, and refuses the rest.
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[ToolParam] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """None is as many as the context allows."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def choice(self) -> ToolChoice:
        """Whether tools are called."""
        if isinstance(self.tool_choice, NamedTool):
            return ToolChoice("named", self.tool_choice.function.name)
        return ToolChoice(self.tool_choice or "auto")

    def template_options(self) -> dict[str, Any]:
        """Keyword arguments for the chat template.

        Raises:
          RequestError: `chat_template_kwargs` names something that has a field of its own.
        """
        kwargs = self.chat_template_kwargs or {}
        if taken := _TEMPLATE_FIELDS & kwargs.keys():
            raise RequestError("chat_template_kwargs", f"may not set {min(taken)!r}")
        add_prompt = self.add_generation_prompt
        return {
            **kwargs,
            "continue_final_message": self.continue_final_message,
            "add_generation_prompt": not self.continue_final_message if add_prompt is None else add_prompt,
        }


class CompletionRequest(_GenerationRequest):
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"prompt": "The sky is blue because", "max_tokens": 32, "temperature": 0.7},
    )
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        **_GenerationRequest.PARAM_NAMES,
        "input_ids": "prompt",
        "text": "prompt",
        "top_logprobs_num": "logprobs",
    }

    prompt: Prompt
    suffix: str | None = None
    max_tokens: int | None = Field(16, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_BEST_OF)

    @property
    def num_choices(self) -> int:
        """Samples in the answer, of each prompt."""
        return 1 if self.n is None else self.n

    @property
    def is_ranked(self) -> bool:
        """Whether more samples are drawn than answered with, so that the likeliest must be found."""
        return self.best_of is not None and self.best_of > self.num_choices

    @model_validator(mode="after")
    def _what_openai_refuses(self) -> Self:
        if self.suffix:
            raise RequestError(
                "suffix", "not supported: the model only continues a text, it does not fill a gap in one"
            )
        if self.best_of is not None and self.best_of < self.num_choices:
            raise RequestError("best_of", f"must be at least n, which is {self.num_choices}")
        if self.is_ranked and self.stream:
            raise RequestError("best_of", "cannot be streamed, since the best is known only at the end; must equal n")
        return self
