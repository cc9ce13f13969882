"""Llama 1 to 3.3, and what is built like it: SmolLM2, TinyLlama, Yi, ..."""

from __future__ import annotations

from sgjax.models.config import HFConfig, ModelConfig, read_decoder


def read_llama(hf: HFConfig) -> ModelConfig:
    bias = bool(hf.get("attention_bias", False))
    return read_decoder(hf, qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False)))
