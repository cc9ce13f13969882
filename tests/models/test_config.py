"""Reading `config.json`: both generations of field names, families' defaults, and what is refused."""

from __future__ import annotations

import pytest

from sgjax.layers.rotary import Linear, Llama3, Rope, Yarn
from sgjax.models.errors import ModelError
from sgjax.models.registry import read_config
from sgjax.types import KVSpec

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
    "eos_token_id": [2, 7],
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}


def test_sizes():
    cfg = read_config(LLAMA)
    assert (cfg.num_layers, cfg.num_kv_heads, cfg.group_size, cfg.head_dim) == (3, 2, 2, 16)
    assert cfg.kv_specs == (KVSpec(2, 16),) * 3
    assert cfg.dtype == "bfloat16"
    assert cfg.eos_token_ids == (2, 7)
    assert not cfg.tie_embeddings
    assert cfg.windows == (None, None, None)
    assert hash(cfg) == hash(read_config(LLAMA))


def test_given_dtype_replaces_the_checkpoints():
    assert read_config(LLAMA, "float32").dtype == "float32"
    with pytest.raises(ModelError, match="int8"):
        read_config(LLAMA, "int8")


def test_without_kv_heads_there_is_one_per_query_head():
    cfg = read_config({**LLAMA, "num_key_value_heads": None})
    assert (cfg.num_kv_heads, cfg.group_size) == (4, 1)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("fields", "rope", "context_length"),
    [
        ({}, Rope(16, 1e4), 256),
        ({"rope_theta": 5e5}, Rope(16, 5e5), 256),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(16, 5e5), 256),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rope(16, 1e4, Linear(4.0)), 1024),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            Rope(16, 5e5, Llama3(8.0, 1.0, 4.0, 32)),
            256,
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            Rope(16, 5e5, Llama3(8.0, 1.0, 4.0, 32)),
            256,
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            Rope(16, 1e4, Yarn(4.0, 128, 32.0, 1.0, pytest.approx(1.1386, abs=1e-4))),
            512,
        ),
    ],
)
def test_rope(fields, rope, context_length):
    cfg = read_config({**LLAMA, **fields})
    assert cfg.rope == rope
    assert cfg.context_length == context_length


def test_mistral_has_one_window_or_none():
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"]}
    assert read_config({**mistral, "sliding_window": 24}).windows == (24, 24, 24)
    assert read_config({**mistral, "sliding_window": None}).windows == (None, None, None)


def test_qwen2_windows_start_at_a_layer():
    assert read_config({**QWEN2, "sliding_window": 24, "use_sliding_window": False}).windows == (None, None, None)
    used = {**QWEN2, "sliding_window": 24, "use_sliding_window": True}
    assert read_config({**used, "max_window_layers": 1}).windows == (None, 24, 24)
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert read_config({**used, "layer_types": types}).windows == (24, None, None)


def test_biases_of_families():
    assert not read_config(LLAMA).qkv_bias
    llama = read_config({**LLAMA, "attention_bias": True})
    assert (llama.qkv_bias, llama.out_bias, llama.mlp_bias) == (True, True, False)
    qwen2 = read_config(QWEN2)
    assert (qwen2.qkv_bias, qwen2.out_bias) == (True, False)
    qwen3 = read_config({**LLAMA, "architectures": ["Qwen3ForCausalLM"]})
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "rotary"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "128"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"hidden_size": 63}, "hidden_size 63"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        read_config({**LLAMA, **fields})
