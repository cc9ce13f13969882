"""Writes the small random checkpoints under `models/` and what Hugging Face transformers computes from them.

sgjax's tests need no PyTorch; this script does. In an environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    oracle/bin/pip install transformers==5.23.0 numpy
    oracle/bin/python tests/golden/make_models.py

Each folder holds `config.json`, `model.safetensors` and `expected.npz`: `token_ids` (2, 72) and `logprobs`
(2, 72, V), the float32 log-probabilities of the next token at every position.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

PROMPT_LEN = 72  # longer than the windows below and than the tests' chunks
WINDOW = 24

SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def sized(config_class: type[PretrainedConfig], **differences: object) -> PretrainedConfig:
    return config_class(**(SIZES | differences))


def rope(kind: str, theta: float, **parameters: float) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": theta, **parameters}


MODELS = {
    "llama2": sized(LlamaConfig, num_attention_heads=4, num_key_value_heads=4),
    "llama3": sized(
        LlamaConfig,
        max_position_embeddings=512,
        rope_parameters=rope(
            "llama3",
            5e5,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_linear_biases": sized(
        LlamaConfig, attention_bias=True, mlp_bias=True, rope_parameters=rope("linear", 1e4, factor=4.0)
    ),
    "smollm2": sized(
        LlamaConfig,
        hidden_size=72,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        rope_parameters=rope("default", 1e5),
    ),
    "mistral": sized(MistralConfig, sliding_window=WINDOW),
    "qwen2_tied": sized(Qwen2Config, tie_word_embeddings=True, rope_parameters=rope("default", 1e6)),
    "qwen2_window": sized(Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": sized(Qwen3Config, head_dim=16, tie_word_embeddings=True, rope_parameters=rope("default", 1e6)),
    "qwen3_yarn": sized(
        Qwen3Config,
        head_dim=16,
        rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64),
    ),
}


def randomise(model: torch.nn.Module) -> None:
    """Peaked distributions, and norms and biases that matter: a fresh model's weights would hide bugs."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.5)
            else:
                gain = 3.0 if "embed" in name or "lm_head" in name else 1.5
                weight.normal_(std=gain * weight.shape[1] ** -0.5)


def write(name: str, config: PretrainedConfig, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    # Most are stored in bfloat16, for size; what is expected is computed in float32 from the rounded weights.
    dtype = torch.float32 if name == "llama2" else torch.bfloat16
    model = model.to(dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    token_ids = torch.randint(0, config.vocab_size, (2, PROMPT_LEN))
    # Loaded again: `to` back would keep buffers, such as rotary frequencies, rounded.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(token_ids).logits, dim=-1)
    np.savez_compressed(folder / "expected.npz", token_ids=token_ids.numpy(), logprobs=logprobs.numpy())
    size = (folder / "model.safetensors").stat().st_size
    print(f"{name}: {size} bytes, best logprob {logprobs.max(-1).values.mean():.2f} on average")


def main() -> None:
    folder = Path(__file__).parent / "models"
    chosen = sys.argv[1:] or MODELS
    for name in chosen:
        write(name, MODELS[name], folder / name, seed=list(MODELS).index(name))


if __name__ == "__main__":
    main()
