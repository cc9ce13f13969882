"""What the APIs of chat models have in common."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from sgjax.lang.backends.base import Completion, Unsupported
from sgjax.lang.backends.params import dtype_regex
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

# Fields that OpenAI's API lacks. A server that has them takes them, another one refuses them with a message.
_EXTRA = {
    "top_k": "top_k",
    "min_p": "min_p",
    "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop_token_ids": "stop_token_ids",
    "stop_regex": "stop_regex",
    "ignore_eos": "ignore_eos",
    "regex": "regex",
    "ebnf": "ebnf",
}


def require(module: str, backend: str) -> ModuleType:
    """An optional library, which the extra of its name installs.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and one of its own imports fails
            raise
        raise ImportError(
            f"sgl.{backend} needs the package {module!r}: pip install 'sgjax[{module}]'", name=module
        ) from error


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation so far, for a request whose answer is the assistant's turn.

    Raises:
      Unsupported: the generation is not the start of an assistant's turn.
    """
    if prompt.role != "assistant" or prompt.turn_text:
        raise Unsupported(
            "a chat API writes whole turns: gen must be the first thing in an assistant's turn. With "
            "@function(num_api_spec_tokens=128) a turn may hold text and several gen, which are asked for together"
        )
    return list(prompt.messages)


def openai_options(sampling: Sampling, *, is_chat: bool, is_reasoning: bool = False) -> dict[str, Any]:
    """Keyword arguments of OpenAI's client. Reasoning models take no sampling options."""
    if sampling.structural_tag is not None:
        raise Unsupported("structural_tag is not in OpenAI's API")
    given = sampling.given()
    limit = "max_completion_tokens" if is_reasoning else "max_tokens"
    options: dict[str, Any] = {limit: given.get("max_new_tokens")}
    if not is_reasoning:
        names = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "stop")
        options |= {name: given[name] for name in names if name in given}
    options |= {name: given[name] for name in ("n", "seed") if name in given}
    if "stop" in options and not isinstance(options["stop"], str):
        options["stop"] = list(options["stop"])
    if sampling.json_schema is not None:
        options["response_format"] = _response_format(sampling.json_schema)
    if sampling.return_logprob:
        top = sampling.top_logprobs_num or 0
        options |= {"logprobs": True, "top_logprobs": top} if is_chat else {"logprobs": top}
    extra = {theirs: given[ours] for ours, theirs in _EXTRA.items() if ours in given}
    if extra:
        options["extra_body"] = extra
    return {name: value for name, value in options.items() if value is not None}


def _response_format(schema: Any) -> dict[str, Any]:
    value = json.loads(schema) if isinstance(schema, str) else schema
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": value}}


def openai_completions(response: Any, sampling: Sampling, *, is_chat: bool) -> list[Completion]:
    """The samples of a response of OpenAI's client."""
    completions = []
    for index, choice in enumerate(response.choices):
        text = (choice.message.content if is_chat else choice.text) or ""
        meta = meta_of(response.usage if index == 0 else None, choice.finish_reason)
        if sampling.return_logprob and choice.logprobs is not None:
            meta["output_token_logprobs"] = _logprobs(choice.logprobs, is_chat)
        completions.append(Completion(typed_text(text, sampling), meta))
    return completions


def _logprobs(found: Any, is_chat: bool) -> list[tuple[float, None, str]]:
    if is_chat:
        return [(one.logprob, None, one.token) for one in found.content or []]
    return [(value, None, token) for value, token in zip(found.token_logprobs, found.tokens, strict=True)]


def meta_of(usage: Any, finish_reason: str | None) -> dict[str, Any]:
    """SGLang's meta information from OpenAI's usage. It counts the whole request, so one sample alone has it."""
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": getattr(usage, "prompt_tokens", None) or 0,
        "completion_tokens": getattr(usage, "completion_tokens", None) or 0,
        "cached_tokens": getattr(details, "cached_tokens", None) or 0,
        "finish_reason": None if finish_reason is None else {"type": finish_reason},
    }


def typed_text(text: str, sampling: Sampling) -> str:
    """The first text of the wanted type, since these APIs cannot be held to one.

    Raises:
      ValueError: there is none.
    """
    if sampling.dtype is None:
        return text
    match = re.search(dtype_regex(sampling.dtype), text)
    if match is None:
        raise ValueError(f"the model was to give a value of type {sampling.dtype}, and wrote {text!r}")
    return match[0].strip()


def refuse_select(choices: Sequence[str]) -> NoReturn:
    """Raises Unsupported."""
    raise Unsupported(
        f"chat APIs give no log-probabilities of a prompt, so {list(choices)!r} cannot be scored; use gen and compare"
    )
