"""Requests of Ollama's API."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sgjax.types import SamplingParams
from sgjax_server.schemas.common import ApiModel
from sgjax_server.schemas.openai import MAX_TOP_LOGPROBS
from sgjax_server.schemas.tools import ToolParam

# An option's name here, and SamplingParams' name of the same.
_SAMPLING_FIELDS = {
    "frequency_penalty": "frequency_penalty",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}


class Options(ApiModel):
    """How to sample. Options about loading a model mean nothing here: it is loaded, and its context is the server's."""

    IGNORED = frozenset(
        {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "num_keep", "low_vram", "f16_kv"}
        | {"use_mmap", "use_mlock", "vocab_only", "logits_all", "embedding_only", "penalize_newline"}
        | {"mirostat_eta", "mirostat_tau"}
    )
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mirostat": (0,),
        "repeat_last_n": (-1,),
        "tfs_z": (1,),
        "typical_p": (1,),
    }

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """None, which Ollama writes as 0 or less, is as many as the context allows."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class _GenerationRequest(ApiModel):
    """What chats and prompts have in common."""

    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        **{param: f"options.{name}" for name, param in _SAMPLING_FIELDS.items()},
        "max_new_tokens": "options.num_predict",
        "json_schema": "format",
        "top_logprobs_num": "top_logprobs",
    }
    IGNORED = frozenset({"keep_alive"})

    model: str = "default"
    format: Literal["json", ""] | dict[str, Any] | None = None
    options: Options | None = None
    stream: bool | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def streams(self) -> bool:
        return self.stream is not False

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Sampling parameters; what the request leaves open comes from `defaults` (the model's, not Ollama's)."""
        options = self.options or Options()
        values = {param: getattr(options, name) for name, param in _SAMPLING_FIELDS.items()}
        given = {param: value for param, value in values.items() if value is not None}
        if self.format:
            given["json_schema"] = {"type": "object"} if self.format == "json" else self.format
        return SamplingParams(**{**defaults, **given, "max_new_tokens": options.max_new_tokens})

    def template_options(self) -> dict[str, Any]:
        """A level of thinking is for templates that know levels; for the others it is thinking."""
        if self.think is None:
            return {}
        if isinstance(self.think, bool):
            return {"enable_thinking": self.think}
        return {"enable_thinking": True, "reasoning_effort": self.think}


class CalledFunction(ApiModel):
    IGNORED = frozenset({"index", "description"})

    name: str
    arguments: dict[str, Any]


class ToolCallField(ApiModel):
    IGNORED = frozenset({"type"})

    id: str | None = None
    function: CalledFunction


class OllamaInputMessage(ApiModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: list[ToolCallField] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatRequest(_GenerationRequest):
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": False},
    )
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        **_GenerationRequest.PARAM_NAMES,
        "input_ids": "messages",
        "text": "messages",
    }

    messages: list[OllamaInputMessage] = Field(default_factory=list)
    tools: list[ToolParam] | None = None

    def turn_fields(self) -> dict[str, Any]:
        """What a `ChatTurn` takes from here."""
        return {
            "messages": template_messages(self.messages),
            "tools": tuple(tool.tool() for tool in self.tools or ()),
            "template_options": self.template_options(),
        }


class OllamaGenerateRequest(_GenerationRequest):
    """A prompt, which the chat template makes a turn of, unless it is `raw`."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ({"prompt": "Why is the sky blue?", "stream": False},)
    PARAM_NAMES: ClassVar[Mapping[str, str]] = {
        **_GenerationRequest.PARAM_NAMES,
        "input_ids": "prompt",
        "messages": "prompt",
        "text": "prompt",
    }

    prompt: str = ""
    system: str | None = None
    raw: bool = False

    def turn_fields(self) -> dict[str, Any]:
        """What a `ChatTurn` takes from here."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "messages": [*system, {"role": "user", "content": self.prompt}],
            "template_options": self.template_options(),
        }


class ShowRequest(ApiModel):
    """Any name is the served model's."""

    IGNORED = frozenset({"name", "verbose"})

    model: str = "default"


def template_messages(messages: Sequence[OllamaInputMessage]) -> list[dict[str, Any]]:
    """A conversation in the form of OpenAI's chat API, where calls of tools have ids, and their results name them."""
    new_ids = (f"call{number:05}" for number in itertools.count())
    waiting: list[tuple[str, str]] = []  # (tool, id) of the calls that have no result yet
    result = []
    for message in messages:
        converted: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking:
            converted["reasoning_content"] = message.thinking
        if message.tool_calls:
            converted["tool_calls"] = [_call(call, call.id or next(new_ids)) for call in message.tool_calls]
            waiting += [(call["function"]["name"], call["id"]) for call in converted["tool_calls"]]
        if message.role == "tool":
            name, id = _answered(message, waiting)
            converted |= {"tool_call_id": id, "name": name}
        result.append(converted)
    return result


def _call(call: ToolCallField, id: str) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _answered(message: OllamaInputMessage, waiting: list[tuple[str, str]]) -> tuple[str, str]:
    """The call whose result this is, as (tool, id): the first that fits what the message says of it.

    It no longer waits.
    """
    for name, id in waiting:
        if message.tool_call_id in (None, id) and message.tool_name in (None, name):
            waiting.remove((name, id))
            return name, id
    return message.tool_name or "", message.tool_call_id or ""
