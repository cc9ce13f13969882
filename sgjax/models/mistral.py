"""Mistral: Llama whose layers all see a window (7B v0.1), or everything (later ones, which leave it null)."""

from __future__ import annotations

from sgjax.models.config import HFConfig, ModelConfig, positive, read_decoder


def read_mistral(hf: HFConfig) -> ModelConfig:
    window = None if hf.get("sliding_window") is None else positive(hf, "sliding_window")
    return read_decoder(hf, windows=(window,) * positive(hf, "num_hidden_layers"))
