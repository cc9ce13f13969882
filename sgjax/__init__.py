"""sgjax: a serving engine for language models in JAX.

import sgjax
with sgjax.Engine("embedded") as engine:
    print(engine.generate("The capital of France is").text)

As `import sgjax as sgl` it is the frontend language too (`sgjax/lang`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sgjax.errors import EngineError
from sgjax.types import GenerateOutput, QueueFull, Request, RequestError, SamplingParams

if TYPE_CHECKING:
    from sgjax.engine import Engine
    from sgjax.lang import (
        ProgramCancelled,
        ProgramError,
        ProgramState,
        ProgramStateGroup,
        SglFunction,
        TraceError,
        Usage,
        all_of,
        any_of,
        assistant,
        assistant_begin,
        assistant_end,
        contains,
        flush_cache,
        function,
        gen,
        gen_int,
        gen_string,
        get_server_info,
        greedy_token_selection,
        image,
        length,
        not_,
        select,
        separate_reasoning,
        set_default_backend,
        system,
        system_begin,
        system_end,
        token_length_normalized,
        unconditional_likelihood_normalized,
        user,
        user_begin,
        user_end,
        video,
    )
    from sgjax.lang.backends.anthropic import Anthropic
    from sgjax.lang.backends.endpoint import RuntimeEndpoint
    from sgjax.lang.backends.engine import OwnedEngine
    from sgjax.lang.backends.litellm import LiteLLM
    from sgjax.lang.backends.openai import OpenAI

__version__ = "0.1.0"

# Modules of the names that bring more with them than types: the engine alone imports jax, which takes a second.
_BACKENDS = {"Anthropic": "anthropic", "LiteLLM": "litellm", "OpenAI": "openai", "RuntimeEndpoint": "endpoint"}

__all__ = [
    "Anthropic",
    "Engine",
    "EngineError",
    "GenerateOutput",
    "LiteLLM",
    "OpenAI",
    "ProgramCancelled",
    "ProgramError",
    "ProgramState",
    "ProgramStateGroup",
    "QueueFull",
    "Request",
    "RequestError",
    "Runtime",
    "RuntimeEndpoint",
    "SamplingParams",
    "SglFunction",
    "TraceError",
    "Usage",
    "all_of",
    "any_of",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "contains",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "length",
    "not_",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]


def Runtime(model_path: str = "embedded", **config: Any) -> OwnedEngine:
    """An engine for programs, as SGLang's `Runtime`; `shutdown()` or `with` closes it.

    Args:
      model_path, **config: as for `Engine`.
    """
    from sgjax.engine import Engine
    from sgjax.lang.backends.engine import OwnedEngine

    return OwnedEngine(Engine(model_path, **config))


def __getattr__(name: str) -> Any:
    """Imports a name's module when it is first used."""
    if name == "Engine":
        module = importlib.import_module("sgjax.engine")
    elif name in _BACKENDS:
        module = importlib.import_module(f"sgjax.lang.backends.{_BACKENDS[name]}")
    elif name in __all__:
        module = importlib.import_module("sgjax.lang")
    else:
        raise AttributeError(f"module 'sgjax' has no attribute {name!r}")
    return getattr(module, name)
