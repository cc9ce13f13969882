"""What XLA makes of a step: no copies of weights or caches, and shared work done once."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from sgjax.kernels import resolve
from sgjax.layers.batch import ForwardBatch
from sgjax.models.forward import forward, logits
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 5000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
NUM_PAGES = 512


@pytest.fixture(scope="module")
def compiled():
    """A decode step with its logits, 8 rows of 2 pages, for this machine's CPU."""
    cfg = read_config(CONFIG)
    graphdef, specs = declare(build(cfg))
    ops = resolve("*=xla", "cpu")

    def step(params, batch, cache):
        hidden, cache = forward(params, batch, cache, graphdef=graphdef, ops=ops)
        return logits(params, hidden[batch.logit_index], graphdef=graphdef), cache

    ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(8,)] * 3 + [(9,), (8,), (8, 2), (8,)]]
    shapes = [(s.num_kv_heads, NUM_PAGES, 16, s.head_dim) for s in cfg.kv_specs]
    cache = [(jax.ShapeDtypeStruct(shape, jnp.bfloat16),) * 2 for shape in shapes]
    params = jax.tree.map(lambda spec: spec.abstract, specs)
    return jax.jit(step, donate_argnums=2).lower(params, ForwardBatch(*ints, decode=True), cache).compile()


def test_cache_is_updated_in_place(compiled):
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == 3 * 2 * 4 * NUM_PAGES * 16 * 32 * 2
    # Activations are far smaller than the smallest thing that must not be copied, one layer's keys.
    assert memory.temp_size_in_bytes < 4 * NUM_PAGES * 16 * 32 * 2


def test_no_copy_or_conversion_of_weights(compiled):
    smallest_weight = 256 * 256
    pattern = r"= \w+\[([\d,]+)\]\S* (copy|transpose|convert|concatenate)\("
    for shape, op in re.findall(pattern, compiled.as_text()):
        size = 1
        for axis in shape.split(","):
            size *= int(axis)
        assert size < smallest_weight, f"{op} of {shape}"


def test_rotary_angles_are_computed_once(compiled):
    assert compiled.as_text().count(" cosine(") == 1
