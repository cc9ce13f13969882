"""Qwen2 and Qwen2.5: Llama with biases on query, key and value, and a window in the upper layers where asked for."""

from __future__ import annotations

from sgjax.models.config import HFConfig, ModelConfig, read_decoder, sliding_windows


def read_qwen2(hf: HFConfig) -> ModelConfig:
    return read_decoder(hf, qkv_bias=True, windows=sliding_windows(hf))
