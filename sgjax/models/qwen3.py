"""Qwen3: Llama with normalised queries and keys, and a head size of its own."""

from __future__ import annotations

from sgjax.models.config import HFConfig, ModelConfig, positive, read_decoder, sliding_windows


def read_qwen3(hf: HFConfig) -> ModelConfig:
    bias = bool(hf.get("attention_bias", False))
    head_dim = positive(hf, "head_dim", 128)
    return read_decoder(hf, qk_norm=True, head_dim=head_dim, qkv_bias=bias, out_bias=bias, windows=sliding_windows(hf))
