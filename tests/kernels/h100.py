"""Compiles the kernels, and whole steps of an 8B Llama, for an H100 that is not there; prints a report as JSON.

`test_h100.py` runs this in a process of its own, with the compiler's packages on the path and JAX kept to the CPU.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from sgjax.engine.lowering import ForwardKey, Lowering
from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.paged_decode import mosaic as decode_mosaic
from sgjax.kernels.paged_decode import specs as decode_specs
from sgjax.kernels.paged_prefill import mosaic as prefill_mosaic
from sgjax.kernels.paged_prefill import specs as prefill_specs
from sgjax.kernels.write_kv import mosaic as write_mosaic
from sgjax.kernels.write_kv import specs as write_specs
from sgjax.models.loader import LoadedModel
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare

# What the compiler asks about an H100 SXM5, from NVIDIA's data sheet and CUDA's limits for compute capability 9.0.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
  device_address_bits: 64
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
_LARGE_BYTES = 16 << 20  # Half of the smallest weight matrix.
_NO_NEW_MEMORY = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant"}
_DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


def kernels() -> list[tuple[str, Callable[..., Any], Any, tuple[int, ...]]]:
    """(op, function, case, donated arguments): every page size and head size, with and without window and cap."""
    decode = (
        decode_specs.BENCHMARK_GPU[2],
        AttentionCase(kv_lens=(300,) * 8, num_kv_heads=3, group=3, page_size=16),
        AttentionCase(kv_lens=(300,) * 8, group=8, head_dim=128, page_size=128, window=64, soft_cap=30.0),
    )
    prefill = (
        prefill_specs.BENCHMARK_GPU[0],
        AttentionCase(q_lens=(64,) * 4, kv_lens=(300,) * 4, num_kv_heads=3, group=3, page_size=32, window=64),
    )
    return [
        *(("paged_decode", decode_mosaic.paged_decode, case, ()) for case in decode),
        *(("paged_prefill", prefill_mosaic.paged_prefill, case, ()) for case in prefill),
        ("write_kv", write_mosaic.write_kv, write_specs.BENCHMARK_GPU[0], (0, 1)),
    ]


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
    sharding: jax.sharding.Sharding, kernel_choices: str, key: ForwardKey, num_layers: int, page_size: int
) -> dict[str, Any]:
    """What a step takes besides weights and cache, and what in it makes large arrays."""
    model = llama_8b(num_layers, sharding)
    num_pages = key.num_rows * key.num_pages
    ops = resolve(kernel_choices, "gpu")
    lowering = Lowering(
        model, ops, num_slots=key.num_rows, num_pages=num_pages, page_size=page_size, kv_dtype="bfloat16"
    )
    compiled = lowering.compile(key)
    memory = compiled.memory_analysis()
    config = model.config
    layer_bytes = 2 * config.num_kv_heads * num_pages * page_size * config.head_dim * 2
    return {
        "kernel_choices": kernel_choices,
        "num_layers": num_layers,
        "cache_shape": f"bf16[{config.num_kv_heads},{num_pages},{page_size},{config.head_dim}]",
        "cache_bytes": layer_bytes * num_layers,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        **describe(compiled.as_text()),
    }


def describe(hlo: str) -> dict[str, Any]:
    """Counts of the entry computation's instructions by kind, and (kind, type) of those that make a large array."""
    entry = hlo[hlo.index("\nENTRY ") :]
    found = re.findall(r"^\s+(?:ROOT )?%\S+ = (\(.*?\)|\S+) ([\w-]+)\(", entry, re.MULTILINE)
    large, counts = [], {}
    for types, kind in found:
        counts[kind] = counts.get(kind, 0) + 1
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
        num_bytes = sum(
            _DTYPE_BYTES[dtype] * math.prod(map(int, dims.split(",") if dims else ())) for dtype, dims in arrays
        )
        if kind not in _NO_NEW_MEMORY and num_bytes >= _LARGE_BYTES:
            large.append((kind, re.sub(r"\{[^}]*\}", "", types)))
    return {"large": large, "counts": counts}


def take_reports(dump: Path) -> dict[str, dict[str, int]]:
    """Registers and spilled bytes of each kernel compiled since the last call: Mosaic's, and those XLA generated."""
    text = "".join(path.read_text() for path in dump.glob("*.ptxas"))
    ptxas = next(Path(os.environ["PYTHONPATH"]).glob("nvidia/*/bin/ptxas"))
    for path in dump.glob("module_*.ptx"):
        command = [ptxas, "-v", "-arch=sm_90a", path, "-o", os.devnull]
        text += subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for path in dump.iterdir():
        path.unlink()
    pattern = r"entry function '([^']+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    found = re.findall(pattern, text, re.DOTALL)
    return {
        name: {"registers": int(registers), "spilled_bytes": int(stored) + int(loaded)}
        for name, stored, loaded, registers in found
    }


def main() -> None:
    dump = Path(os.environ["MOSAIC_GPU_DUMP_TO"])
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    report: dict[str, Any] = {"kernels": [], "steps": {}}
    for op, function, case, donated in kernels():
        args = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=sharding) for arg in case.shapes()]
        compiled = jax.jit(partial(function, **case.kwargs), donate_argnums=donated).lower(*args).compile()
        alias_bytes = compiled.memory_analysis().alias_size_in_bytes
        donated_bytes = sum(math.prod(args[i].shape) * args[i].dtype.itemsize for i in donated)
        report["kernels"].append(
            {
                "op": op,
                "case": case.name,
                "compiled": take_reports(dump),
                "alias_bytes": alias_bytes,
                "donated_bytes": donated_bytes,
            }
        )
    steps = {
        "decode": ("write_kv=xla,*=mosaic", ForwardKey(True, 64, 64, 32), 32, 64),
        "decode, all mosaic": ("*=mosaic", ForwardKey(True, 64, 64, 128), 2, 16),
        "prefill": ("write_kv=xla,*=mosaic", ForwardKey(False, 2048, 8, 128), 2, 16),
    }
    for name, step_args in steps.items():
        step = compile_step(sharding, *step_args)
        report["steps"][name] = step | {"compiled": take_reports(dump)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
