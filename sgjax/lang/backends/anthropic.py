"""Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sgjax.lang.backends import chat_api
from sgjax.lang.backends.base import Completion, Unsupported
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat
from sgjax.lang.choices import ChoicesDecision, ChoicesMethod
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

_REFUSED = ("regex", "ebnf", "structural_tag", "stop_regex", "stop_token_ids", "return_logprob")
# Newer versions of the API, which the client asks for, refuse these even at their default, and so do newer models.
_SAMPLING = ("temperature", "top_p", "top_k")
_VERSION_WITH_SAMPLING = {"anthropic-version": "2023-06-01"}


class Anthropic:
    """Programs on Anthropic's API, by the `anthropic` package.

    `gen` has to be the whole of an assistant's turn, or the program made by `@function(num_api_spec_tokens=...)`.
    A temperature other than 1, `top_p` and `top_k` are asked for at API version 2023-06-01, and only older models take
    them. Penalties, `min_p`, `min_tokens`, `ignore_eos` and `seed`, which the API lacks, have no effect.

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
        cut = _before_stop(text, sampling)
        meta_info = _meta(answer.usage, answer.stop_reason if cut is None else "stop_sequence")
        return Completion(chat_api.typed_text(text if cut is None else cut, sampling), meta_info)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        if sampling.dtype is not None:  # what is of the type shows when all is there
            yield from self.generate(prompt, sampling)
            return
        text, cut = "", None
        with self.client.messages.stream(**self._request(prompt, sampling)) as stream:
            for piece in stream.text_stream:
                text += piece
                cut = _before_stop(text, sampling)
                if cut is not None:
                    break
                yield Completion(_sure_part(text, sampling), _meta(None, None))
            final = stream.current_message_snapshot
        reason = final.stop_reason if cut is None else "stop_sequence"
        yield Completion(text if cut is None else cut, _meta(final.usage, reason))

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        chat_api.refuse_select(choices)

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        raise Unsupported("Anthropic's API has no prefix cache to fill")

    def flush_cache(self) -> None:
        raise Unsupported("Anthropic's API has no prefix cache to flush")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name}

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        for name in _REFUSED:
            if getattr(sampling, name):
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
        options = {name: value for name, value in sampling.given().items() if name in _SAMPLING}
        if options.get("temperature") == 1:
            del options["temperature"]
        if options:
            request |= {"extra_body": options, "extra_headers": _VERSION_WITH_SAMPLING}
        stops = [stop for stop in _stops(sampling) if stop.strip()]
        if stops:
            request["stop_sequences"] = stops
        if sampling.json_schema is not None:
            schema = sampling.json_schema
            schema = json.loads(schema) if isinstance(schema, str) else schema
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return request


def _stops(sampling: Sampling) -> list[str]:
    return [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())


def _blank_stops(sampling: Sampling) -> list[str]:
    """Stop strings of nothing but white space, which the API refuses; the answer is cut at them here."""
    return [stop for stop in _stops(sampling) if stop and not stop.strip()]


def _before_stop(text: str, sampling: Sampling) -> str | None:
    """The text before the first blank stop string; None where there is none."""
    found = [at for stop in _blank_stops(sampling) if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else None


def _sure_part(text: str, sampling: Sampling) -> str:
    """The text without an end that may be the beginning of a blank stop string."""
    parts = [stop[:size] for stop in _blank_stops(sampling) for size in range(1, len(stop))]
    return text[: len(text) - max((len(part) for part in parts if text.endswith(part)), default=0)]


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
    """SGLang's meta information. Anthropic counts tokens read from its cache and put there apart from the others."""
    cached = getattr(usage, "cache_read_input_tokens", None) or 0
    put = getattr(usage, "cache_creation_input_tokens", None) or 0
    return {
        "prompt_tokens": (getattr(usage, "input_tokens", None) or 0) + cached + put,
        "completion_tokens": getattr(usage, "output_tokens", None) or 0,
        "cached_tokens": cached,
        "finish_reason": None if stop_reason is None else {"type": stop_reason},
    }
