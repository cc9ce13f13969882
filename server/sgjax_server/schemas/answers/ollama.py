"""Answers of Ollama's API. Lines of a stream have the form of whole answers; the last has counts and durations."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from sgjax_server.schemas.answers.openai import ChatToken

Capability = Literal["completion", "tools", "thinking"]


class OllamaAnswer(TypedDict):
    """What answers of both routes have. Durations are nanoseconds; `prompt_eval_count` includes cached tokens."""

    model: str
    created_at: str
    done: bool
    done_reason: NotRequired[Literal["stop", "length", "load"]]
    logprobs: NotRequired[list[ChatToken]]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    eval_duration: NotRequired[int]


class OllamaFunction(TypedDict):
    name: str
    arguments: dict[str, Any]


class OllamaCall(TypedDict):
    id: str
    function: OllamaFunction


class OllamaMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[OllamaCall]]


class OllamaChat(OllamaAnswer):
    message: OllamaMessage


class OllamaGenerated(OllamaAnswer):
    response: str
    thinking: NotRequired[str]


class ModelDetails(TypedDict):
    parent_model: str
    family: str
    families: list[str]
    quantization_level: str


class OllamaCard(TypedDict):
    name: str
    model: str
    digest: str
    details: ModelDetails
    modified_at: NotRequired[str]
    context_length: NotRequired[int]


class OllamaModels(TypedDict):
    models: list[OllamaCard]


class OllamaVersion(TypedDict):
    version: str


class OllamaModel(TypedDict):
    """`parameters`: the model's sampling defaults, one a line."""

    modified_at: str
    template: str | None
    parameters: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[Capability]
