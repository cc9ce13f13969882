"""Whole steps of an 8B Llama, compiled for an H100 that is not there, and what the compiler made of them."""

from __future__ import annotations

import collections
import math
import re
from pathlib import Path
from typing import Any

import jax

from sgjax.engine import steps
from sgjax.engine.lowering import ForwardKey, Lowering, SampleKey
from sgjax.kernels import resolve
from sgjax.models.loader import LoadedModel
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare
from tests.kernels import hlo_bytes

_LARGE_BYTES = 16 << 20  # Half of the smallest weight matrix.


def llama_8b(num_layers: int, sharding: jax.sharding.Sharding) -> LoadedModel:
    """Llama 3.1 8B's shapes, without weights."""
    config = read_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "torch_dtype": "bfloat16",
        },
        "bfloat16",
    )
    graphdef, specs = declare(build(config))
    params = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding), specs)
    return LoadedModel(config, graphdef, params, {}, Path())


def compile_step(
    sharding: jax.sharding.Sharding, dump: Path, kernel_choices: str, key: ForwardKey, num_layers: int, page_size: int
) -> dict[str, Any]:
    """A step's memory besides weights and cache, what in it makes large arrays, what it moves and what it launches."""
    model = llama_8b(num_layers, sharding)
    num_pages = key.num_rows * key.num_pages
    ops = resolve(kernel_choices, "gpu")
    lowering = Lowering(
        model, ops, num_slots=key.num_rows, num_pages=num_pages, page_size=page_size, kv_dtype="bfloat16"
    )
    compiled = lowering.compile(key)
    memory = compiled.memory_analysis()
    config = model.config
    cache_shape = config.num_kv_heads, num_pages, page_size, config.head_dim
    layer_bytes = 2 * math.prod(cache_shape) * 2
    computations = hlo_bytes.parse(compiled.as_text())
    traffic = hlo_bytes.traffic(computations, cache_shape, layer_bytes)
    return {
        "kernel_choices": kernel_choices,
        "num_layers": num_layers,
        "cache_shape": f"bf16[{','.join(map(str, cache_shape))}]",
        "cache_bytes": layer_bytes * num_layers,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "moved_bytes": sum(kernel.parameter_bytes + kernel.activation_bytes for kernel in traffic),
        "floor_bytes": floor_bytes(model, key, layer_bytes * num_layers),
        "largest_activations": sorted(((x.activation_bytes, x.kernel) for x in traffic), reverse=True)[:8],
        "thunks": read_thunks(dump),
        **describe(computations["ENTRY"]),
    }


def compile_sampling(
    sharding: jax.sharding.Sharding, dump: Path, kernel_choices: str, key: SampleKey
) -> dict[str, Any]:
    """What the second call of a step moves and launches, with as many slots as rows."""
    model = llama_8b(1, sharding)
    ops = resolve(kernel_choices, "gpu")
    lowering = Lowering(model, ops, num_slots=key.num_rows, num_pages=1, page_size=16, kv_dtype="bfloat16")
    on_device = jax.tree.map(
        lambda arg: jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=sharding), lowering.sample_args(key)
    )
    step = jax.jit(steps.sample_step, static_argnames=("ops",), donate_argnames=("last_token", "counts"))
    compiled = step.lower(*on_device, ops=ops).compile()
    traffic = hlo_bytes.traffic(hlo_bytes.parse(compiled.as_text() or ""))
    return {
        "logits_bytes": key.num_rows * model.config.vocab_size * 4,
        "moved_bytes": sum(kernel.parameter_bytes + kernel.activation_bytes for kernel in traffic),
        "thunks": read_thunks(dump),
    }


def floor_bytes(model: LoadedModel, key: ForwardKey, kv_bytes: int) -> int:
    """What a step must move: weights and KV read once, and what one kernel hands to the next written and read once.

    A layer's kernels would be norm, QKV with rotation and writing, attention, its product, norm, gate and up, gating,
    down. The residual stream, float32, is read and written twice a layer.
    """
    config, num_tokens = model.config, key.num_tokens
    hidden, forward = config.hidden_size, config.intermediate_size
    heads = config.num_kv_heads * config.head_dim
    narrow = 2 * hidden + heads * (config.group_size + 2) + heads * config.group_size + 3 * forward  # bfloat16
    wide = 2 * hidden  # float32: what is added to the residual stream
    layer = 2 * (2 * narrow + 4 * wide) + 4 * 4 * hidden
    weights = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
    embedding = config.vocab_size * hidden * 2  # is gathered from
    logits = key.num_rows * config.vocab_size * 4
    written_kv = num_tokens * config.num_layers * heads * 2 * 2
    return weights - embedding + kv_bytes + written_kv + num_tokens * config.num_layers * layer + logits


def describe(entry: hlo_bytes.Computation) -> dict[str, Any]:
    """Counts of the entry computation's instructions by kind, and (kind, type) of those that make a large array."""
    large = [
        (instruction.kind, ", ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in instruction.shapes))
        for instruction in entry.values()
        if instruction.is_kernel and instruction.num_bytes >= _LARGE_BYTES
    ]
    return {"large": large, "counts": collections.Counter(instruction.kind for instruction in entry.values())}


def read_thunks(dump: Path) -> dict[str, dict[str, int]]:
    """What the host launches for the step just compiled, by kind, and what of it command buffers hold."""
    (path,) = dump.glob("*.thunk_sequence_after_thunk_passes.txt")
    found = re.findall(r"^( *)\d+: (k\w+)", path.read_text(), re.MULTILINE)
    return {
        "launched": collections.Counter(kind for indent, kind in found if not indent),
        "captured": collections.Counter(kind for indent, kind in found if indent),
    }
