"""Compiles the kernels, and whole steps of an 8B Llama, for an H100 that is not there; prints a report as JSON.

`test_h100.py` runs this in a process of its own, with the compiler's packages on the path and JAX kept to the CPU.
"""

from __future__ import annotations

import dataclasses
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

from sgjax.engine.lowering import ForwardKey, SampleKey
from sgjax.engine.sharing import max_groups
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.paged_decode import mosaic as decode_mosaic
from sgjax.kernels.paged_decode import specs as decode_specs
from sgjax.kernels.paged_prefill import mosaic as prefill_mosaic
from sgjax.kernels.paged_prefill import specs as prefill_specs
from sgjax.kernels.sampling_threshold import mosaic as threshold_mosaic
from sgjax.kernels.sampling_threshold import specs as threshold_specs
from sgjax.kernels.write_kv import mosaic as write_mosaic
from sgjax.kernels.write_kv import specs as write_specs
from tests.kernels import hlo_bytes
from tests.kernels.h100_steps import compile_sampling, compile_step

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


def kernels() -> list[tuple[str, Callable[..., Any], Any, tuple[int, ...], int]]:
    """(op, function, case, donated arguments, programs that are to fit on a multiprocessor).

    Every page size and head size, with and without window and cap.
    """
    eight: dict[str, Any] = dict(kv_lens=(300,) * 8)
    float8: dict[str, Any] = dict(kv_dtype="float8_e4m3fn")
    decode = (
        (decode_specs.BENCHMARK_GPU[2], 2),
        (AttentionCase(**eight, num_kv_heads=3, group=3, page_size=16), 2),
        (AttentionCase(**eight, group=8, head_dim=128, page_size=128, window=64, soft_cap=30.0, **float8), 2),
        (AttentionCase(**eight, group=1, head_dim=80, page_size=32, sinks=True, return_lse=True), 2),
        (AttentionCase(**eight, group=12, head_dim=96, page_size=32, **float8), 2),
        (AttentionCase(**eight, group=8, head_dim=256, page_size=64), 1),
        (AttentionCase(**eight, group=64, head_dim=128, page_size=64), 1),
    )
    four: dict[str, Any] = dict(q_lens=(64,) * 4, kv_lens=(300,) * 4)
    prefill = (
        prefill_specs.BENCHMARK_GPU[0],
        AttentionCase(**four, group=8, page_size=16, window=64, sinks=True, return_lse=True),
        AttentionCase(**four, group=3, head_dim=96, page_size=32, soft_cap=30.0),
        AttentionCase(**four, head_dim=256, page_size=128, window=64, soft_cap=30.0),
        AttentionCase(**four, group=8, head_dim=80, page_size=16, causal=False, kv_dtype="float8_e4m3fn"),
    )
    return [
        *(("paged_decode", decode_mosaic.paged_decode, case, (), programs) for case, programs in decode),
        *(("paged_prefill", prefill_mosaic.paged_prefill, case, (), 1) for case in prefill),
        ("write_kv", write_mosaic.write_kv, write_specs.BENCHMARK_GPU[0], (0, 1), 2),
        ("sampling_threshold", threshold_mosaic.sampling_threshold, threshold_specs.BENCHMARK_GPU[-1], (), 3),
    ]


def take_reports(dump: Path) -> dict[str, dict[str, int]]:
    """What each kernel compiled since the last call takes: registers, spilled bytes; Mosaic's also shared memory."""
    text = "".join(path.read_text() for path in dump.glob("*.ptxas"))
    ptxas = next(Path(os.environ["PYTHONPATH"]).glob("nvidia/*/bin/ptxas"))
    for path in dump.glob("module_*.ptx"):
        command = [ptxas, "-v", "-arch=sm_90a", path, "-o", os.devnull]
        text += subprocess.run(command, capture_output=True, text=True, check=True).stderr
    pattern = r"entry function '([^']+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    found = re.findall(pattern, text, re.DOTALL)
    # ptxas says so where it waits for each wgmma before the next.
    serialized = set(re.findall(r"wgmma.mma_async instructions are serialized.*? in the function '([^']+)'", text))
    use = {
        name: {
            "registers": int(registers),
            "spilled_bytes": int(stored) + int(loaded),
            "serialized": name in serialized,
        }
        for name, stored, loaded, registers in found
    }
    # Mosaic's code for the host: the grid, the cluster, the threads and the dynamic shared memory.
    launch = re.compile(r"@mosaic_gpu_launch_kernel\(ptr [^,]+" + r", i32 (\d+)" * 10)
    for path in dump.glob("*.ll"):
        for match in launch.findall(path.read_text()):
            name = path.stem.rsplit("_", 1)[0] + "_mosaic_gpu_kernel"
            use[name] |= {"threads": math.prod(map(int, match[6:9])), "shared_bytes": int(match[9])}
    for path in dump.iterdir():
        path.unlink()
    return use


def main() -> None:
    dump = Path(os.environ["MOSAIC_GPU_DUMP_TO"])
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    report: dict[str, Any] = {"kernels": [], "steps": {}}
    for op, function, case, donated, programs in kernels():
        args = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=sharding) for arg in case.shapes()]
        compiled = jax.jit(partial(function, **case.kwargs), donate_argnums=donated).lower(*args).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        donated_bytes = sum(math.prod(args[i].shape) * args[i].dtype.itemsize for i in donated)
        made = hlo_bytes.parse(compiled.as_text() or "")["ENTRY"].values()
        cache_dims = sorted(args[1].shape)
        report["kernels"].append(
            {
                "op": op,
                "case": case.name,
                "compiled": take_reports(dump),
                "programs": programs,
                "makes_caches": [x.kind for x in made if cache_dims in [sorted(dims) for _, dims in x.shapes]],
                "alias_bytes": memory.alias_size_in_bytes,
                "donated_bytes": donated_bytes,
            }
        )
    steps = {
        "decode": ("write_kv=xla,*=mosaic", ForwardKey(True, 64, 64, 32), 32, 64),
        # One running sequence is decoded in a bucket of four rows.
        "decode of one": ("write_kv=xla,*=mosaic", ForwardKey(True, 4, 4, 32), 2, 64),
        "decode, all mosaic": ("*=mosaic", ForwardKey(True, 64, 64, 128), 2, 16),
        "prefill": ("write_kv=xla,*=mosaic", ForwardKey(False, 2048, 8, 128), 2, 16),
    }
    for name, step_args in steps.items():
        step = compile_step(sharding, dump, *step_args)
        report["steps"][name] = step | {"compiled": take_reports(dump)}
    shared = ForwardKey(True, 64, 64, 32, max_groups(64))
    cascade = compile_step(sharding, dump, "write_kv=xla,*=mosaic", shared, 2, 64)
    report["cascade"] = cascade | {"compiled": take_reports(dump)}
    greedy = SampleKey(64, sampled=False, penalised=False, logprobs=False)
    report["greedy"] = compile_sampling(sharding, dump, "*=auto", greedy)
    take_reports(dump)
    sampled = dataclasses.replace(greedy, sampled=True)
    report["sampled"] = compile_sampling(sharding, dump, "sampling_threshold=mosaic", sampled)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
