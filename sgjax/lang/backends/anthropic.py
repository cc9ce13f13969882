"""Anthropic's API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sgjax.lang.backends import chat_api
from sgjax.lang.backends.base import Completion, Unsupported
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat
from sgjax.lang.choices import ChoicesDecision, ChoicesMethod
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

_CONSTRAINTS = ("regex", "json_schema", "ebnf", "structural_tag")


class Anthropic:
    """Programs on Anthropic's API, by the `anthropic` package.

    `gen` has to be the whole of an assistant's turn, or the program made by `@function(num_api_spec_tokens=...)`.

    Args:
      *args, **kwargs: of the client (`api_key`, `base_url`, ...).

    Raises:
      ImportError: `anthropic` is not installed.
    """

    is_chat_model = True
    has_prefix_cache = False

    def __init__(self, model_name: str, *args: Any, **kwargs: Any):
        self.model_name = model_name
        self.client = chat_api.require("anthropic", "Anthropic").Anthropic(*args, **kwargs)

    @property
    def chat_format(self) -> ChatFormat:
        return FIXED_FORMATS["default"]

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        return [self._one(prompt, sampling) for _ in range(sampling.n or 1)]  # the API has no n

    def _one(self, prompt: Prompt, sampling: Sampling) -> Completion:
        answer = self.client.messages.create(**self._request(prompt, sampling))
        text = "".join(block.text for block in answer.content if block.type == "text")
        return Completion(chat_api.typed_text(text, sampling), _meta(answer.usage, answer.stop_reason))

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        text = ""
        with self.client.messages.stream(**self._request(prompt, sampling)) as stream:
            for piece in stream.text_stream:
                text += piece
                yield Completion(text, _meta(None, None))
            final = stream.get_final_message()
        yield Completion(text, _meta(final.usage, final.stop_reason))

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        chat_api.refuse_select(choices)

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        raise Unsupported("Anthropic's API has no prefix cache to fill")

    def flush_cache(self) -> None:
        raise Unsupported("Anthropic's API has no prefix cache to flush")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name}

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        for name in _CONSTRAINTS:
            if getattr(sampling, name) is not None:
                raise Unsupported(f"{name} is not in Anthropic's API")
        messages = chat_api.messages_of(prompt)
        request: dict[str, Any] = {
            "model": self.model_name,
            "messages": [_message(message) for message in messages if message["role"] != "system"],
            "max_tokens": sampling.max_new_tokens,
        }
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        if system:
            request["system"] = system
        given = sampling.given()
        request |= {name: given[name] for name in ("temperature", "top_p", "top_k") if name in given}
        if sampling.stop:
            request["stop_sequences"] = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop)
        return request


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's form of a message, whose pictures are not OpenAI's."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    if part["type"] != "image_url":
        raise Unsupported("Anthropic's API takes no video")
    url = part["image_url"]["url"]
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _meta(usage: Any, stop_reason: str | None) -> dict[str, Any]:
    """SGLang's meta information. Anthropic counts cached tokens apart from the others."""
    cached = getattr(usage, "cache_read_input_tokens", None) or 0
    return {
        "prompt_tokens": (getattr(usage, "input_tokens", None) or 0) + cached,
        "completion_tokens": getattr(usage, "output_tokens", None) or 0,
        "cached_tokens": cached,
        "finish_reason": None if stop_reason is None else {"type": stop_reason},
    }
