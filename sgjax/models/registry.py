"""Which family serves which Hugging Face architecture. A new model adds a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from sgjax.models.config import DTYPES, HFConfig, ModelConfig
from sgjax.models.decoder import Decoder
from sgjax.models.errors import ModelError
from sgjax.models.llama import read_llama
from sgjax.models.mistral import read_mistral
from sgjax.models.qwen2 import read_qwen2
from sgjax.models.qwen3 import read_qwen3


class Family(NamedTuple):
    """How to read a config and build the model. `model(cfg)` has `__call__` and `logits` like `Decoder`."""

    read_config: Callable[[HFConfig], ModelConfig]
    model: Callable[[ModelConfig], nnx.Module]


FAMILIES = {
    "LlamaForCausalLM": Family(read_llama, Decoder),
    "MistralForCausalLM": Family(read_mistral, Decoder),
    "Qwen2ForCausalLM": Family(read_qwen2, Decoder),
    "Qwen3ForCausalLM": Family(read_qwen3, Decoder),
}


def read_config(hf: HFConfig, dtype: str = "auto") -> ModelConfig:
    """The architecture's facts from a `config.json`; `dtype` replaces the checkpoint's unless it is "auto".

    Raises:
      ModelError: an architecture, or a feature, that is not supported.
    """
    architectures = hf.get("architectures") or []
    known = [name for name in architectures if name in FAMILIES]
    if not known:
        seen = ", ".join(architectures) or f"none (model_type {hf.get('model_type')!r})"
        raise ModelError(f"unknown architecture: config.json has {seen}; supported are {', '.join(FAMILIES)}")
    cfg = FAMILIES[known[0]].read_config({**hf, "architectures": known[:1], **_given_dtype(dtype)})
    return cfg


def _given_dtype(dtype: str) -> dict[str, str]:
    if dtype not in (*DTYPES, "auto"):
        raise ModelError(f"dtype {dtype!r} is not supported: {', '.join(DTYPES)} are")
    return {} if dtype == "auto" else {"dtype": dtype}


def build(cfg: ModelConfig) -> nnx.Module:
    """The model of a config, full of declarations; see `sgjax.models.spec.declare`."""
    return FAMILIES[cfg.architecture].model(cfg)
