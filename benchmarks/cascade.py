"""Times decoding with and without reading shared prefixes once (cascade attention), side by side.

    python -m benchmarks.cascade [--runs 5] [--out benchmarks/results/cascade.json]

Two parts: attention of one layer with the embedded model's heads, over how many rows share how much; and the
shared-prefix workload of the README on two engines in this process, interleaved. Ratios are flat over cascade.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.radix import git_commit, processor_name
from benchmarks.workloads import Prompts
from sgjax import Engine
from sgjax.engine.sharing import max_groups
from sgjax.kernels import Ops, resolve
from sgjax.layers.attention import paged_attention
from sgjax.layers.batch import ForwardBatch, SharedPrefixes

NUM_KV_HEADS, GROUP, HEAD_DIM, PAGE_SIZE = 3, 3, 64, 16
LAYERS = 6  # one behind the other, on caches of their own, so that no layer finds the last one's keys in a cache
SHAPES = ((1, 2, 512), (1, 4, 256), (1, 4, 1024), (4, 4, 1024), (8, 2, 512), (1, 16, 256), (1, 64, 1024))
OWN_TOKENS = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of the workload")
    parser.add_argument("--repeats", type=int, default=25, help="calls of each attention")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    device = jax.devices()[0]
    ops = resolve("", device.platform, device.device_kind)
    result: dict[str, Any] = {
        "device": device.device_kind,
        "machine": platform.machine(),
        "processor": processor_name(),
        "jax": jax.__version__,
        "commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "attention": [_attention(ops, *shape, args.repeats) for shape in SHAPES],
        "workload": _workload(args.runs),
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _attention(ops: Ops, groups: int, rows: int, prefix: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a layer, `groups` prefixes of `prefix` tokens being shared by `rows` rows each."""
    q, caches, batch = _inputs(groups, rows, prefix)

    def layers(q: jax.Array, caches: Any, batch: ForwardBatch) -> jax.Array:
        for cache in caches:
            q, _ = paged_attention(q, q[:, :, 0], q[:, :, 0], batch, cache, ops, scale=HEAD_DIM**-0.5)
        return q

    flat_batch = ForwardBatch(**{**vars(batch), "shared": None})
    calls = {"cascade": (q, caches, batch), "flat": (q, caches, flat_batch)}
    run = jax.jit(layers)
    times = _interleaved({name: functools.partial(run, *call) for name, call in calls.items()}, repeats)
    row: dict[str, Any] = {"groups": groups, "rows_per_group": rows, "prefix_tokens": prefix}
    row |= {f"{name}_ms": round(statistics.median(seconds) / LAYERS * 1e3, 3) for name, seconds in times.items()}
    row |= {f"{name}_least_ms": round(min(seconds) / LAYERS * 1e3, 3) for name, seconds in times.items()}
    row["ratio"] = round(statistics.median(a / b for a, b in zip(times["flat"], times["cascade"], strict=True)), 2)
    print(row, flush=True)
    return row


def _interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def _inputs(groups: int, rows: int, prefix: int) -> tuple[jax.Array, list[Any], ForwardBatch]:
    rng = np.random.default_rng(0)
    num_rows, prefix_pages, own_pages = groups * rows, prefix // PAGE_SIZE, OWN_TOKENS // PAGE_SIZE
    ids = rng.permutation(num_pages := groups * prefix_pages + num_rows * own_pages).astype(np.int32)
    shared, own = np.split(ids, [groups * prefix_pages])
    page_table = np.hstack([np.repeat(shared.reshape(groups, -1), rows, 0), own.reshape(num_rows, -1)])
    used = np.arange(max_groups(num_rows) + 1)

    def random(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)

    cache_shape = NUM_KV_HEADS, num_pages, PAGE_SIZE, HEAD_DIM
    tokens = jnp.zeros(num_rows, jnp.int32)
    batch = ForwardBatch(
        token_ids=tokens,
        positions=tokens,
        kv_index=tokens - 1,  # nothing is written
        q_starts=jnp.arange(num_rows + 1),
        kv_lens=jnp.full(num_rows, prefix + OWN_TOKENS),
        page_table=jnp.asarray(page_table),
        logit_index=jnp.arange(num_rows),
        decode=True,
        shared=SharedPrefixes(
            jnp.asarray(np.minimum(used, groups) * rows), jnp.asarray(np.where(used[:-1] < groups, prefix, 0))
        ),
    )
    caches = [(random(*cache_shape), random(*cache_shape)) for _ in range(LAYERS)]
    return random(num_rows, NUM_KV_HEADS, GROUP, HEAD_DIM), caches, batch


def _workload(runs: int) -> dict[str, Any]:
    """Total tokens a second: 4 prefixes of 1024 tokens, 64 asks of 64 tokens, 32 out, 16 at a time."""
    settings: dict[str, Any] = dict(max_running_requests=16, context_length=2048)
    engines = {"cascade": Engine(**settings), "flat": Engine(**settings, disable_cascade_attention=True)}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.wait_until_compiled()
    for run in range(runs + 1):
        prompts = Prompts()
        prefixes, asks = prompts.draw(4, 1024), prompts.draw(64, 64)
        bodies = prompts.shuffled([prefixes[i % 4] + ask for i, ask in enumerate(asks)])
        for name, engine in engines.items():
            start = time.perf_counter()
            results = engine.generate(
                input_ids=bodies, sampling_params=dict(temperature=0, max_new_tokens=32, ignore_eos=True)
            )
            num_tokens = sum(len(result.output_ids) for result in results) + sum(map(len, bodies))
            if run:
                rates[name].append(num_tokens / (time.perf_counter() - start))
    for engine in engines.values():
        engine.close()
    figures: dict[str, Any] = {f"{name}_total_tokens_per_s": round(statistics.median(r)) for name, r in rates.items()}
    ratios = (a / b for a, b in zip(rates["cascade"], rates["flat"], strict=True))
    figures["ratio"] = round(statistics.median(ratios), 3)
    print(figures, flush=True)
    return figures


if __name__ == "__main__":
    main()
