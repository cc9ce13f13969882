"""Checks implementations of one kernel against the reference, and times them side by side.

    python -m benchmarks.kernels paged_decode --impl xla,mosaic,my.py:fn   # checks and times cases of serving
    python -m benchmarks.kernels paged_decode --impl my.py:fn --check      # only checks, the parity tests' small cases
    python -m benchmarks.kernels paged_decode --tune                       # finds the Hopper kernel's sizes for a GPU

A time is that of `--layers` calls, each on its own cache and fed with the output of the one before, as in a model.
The implementations take turns, so that other load on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import tune
from benchmarks.gpu.checks import implementation
from benchmarks.gpu.measure import relative_error
from sgjax.kernels import OP_NAMES, resolve
from sgjax.kernels.cases import AttentionCase, FilterCase, WriteCase

Case = AttentionCase | WriteCase | FilterCase

_MAX_CACHE_BYTES = 1 << 30


def main() -> None:
    args = _arguments()
    device = jax.devices()[0]
    names = args.impl.split(",")
    if device.platform == "cpu" and "mosaic" in names and not args.check:
        sys.exit("mosaic is for Hopper GPUs: a CPU can only check it, in an interpreter (--check)")
    if args.tune:
        return tune.run(args.op, device, args.case)
    specs = importlib.import_module(f"sgjax.kernels.{args.op}.specs")
    every = specs.PARITY if args.check else getattr(specs, f"BENCHMARK_{device.platform.upper()}")
    cases = [case for case in every if args.case in case.name]
    if not cases:
        sys.exit(f"--case: none of {', '.join(case.name for case in every)} contains {args.case!r}")
    kernels = {name: implementation(args.op, name) for name in names}
    rows = []
    for case in cases:
        row = _measure(args, kernels, case)
        rows.append(row)
        print(_line(row, kernels), flush=True)
    result = {"op": args.op, "layers": args.layers, "jax": jax.__version__, "device": device.device_kind}
    result |= {"machine": platform.machine(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "rows": rows}
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", choices=OP_NAMES)
    parser.add_argument(
        "--impl", default="xla", help="comma-separated: xla, native, reference, mosaic, file.py:function"
    )
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--check", action="store_true", help="only compare with the reference, on the parity tests' cases"
    )
    parser.add_argument("--tune", action="store_true", help="find the fastest sizes, and write sgjax/kernels/tuned/")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", help="JSON file for the results")
    return parser.parse_args()


def _measure(args: argparse.Namespace, kernels: dict[str, Callable[..., Any]], case: Case) -> dict:
    row: dict[str, Any] = {"case": case.name}
    supporting = {}
    for name, kernel in kernels.items():
        try:
            row[f"error_{name}"] = error(args.op, kernel, case)
            supporting[name] = kernel
        except NotImplementedError as reason:
            row[f"refused_{name}"] = str(reason)
    if not args.check:
        for name, (median_s, least_s) in time_kernels(supporting, case, args.layers, args.repeats).items():
            row |= {f"{name}_ms": round(median_s * 1e3, 3), f"{name}_least_ms": round(least_s * 1e3, 3)}
    return row


def error(op: str, kernel: Callable[..., Any], case: Case) -> float:
    """||out - reference|| / ||reference||, both from the same inputs; NaN anywhere gives NaN."""
    args = case.make(seed=1)
    out = jax.jit(functools.partial(kernel, **case.kwargs))(*args)
    reference = jax.jit(functools.partial(getattr(resolve("*=reference", "cpu"), op), **case.kwargs))
    with jax.default_matmul_precision("highest"):
        if op != "paged_decode":
            return relative_error(out, reference(*args))
        # A few rows at a time: it is unrolled over rows, and hundreds of them would compile for minutes.
        q, k_cache, v_cache, page_table, kv_lens = args
        parts = [
            reference(q[i : i + 4], k_cache, v_cache, page_table[i : i + 4], kv_lens[i : i + 4])
            for i in range(0, len(q), 4)
        ]
        return relative_error(out, jax.tree.map(lambda *x: jnp.concatenate(x), *parts))


def time_kernels(
    kernels: dict[str, Callable[..., Any]], case: Case, layers: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Median and least seconds of `layers` calls per kernel."""
    if isinstance(case, FilterCase):
        steps = {name: _filter_step(kernel, case, layers) for name, kernel in kernels.items()}
    elif isinstance(case, AttentionCase):
        steps = {name: _attention_step(kernel, case, _caches(case, layers)) for name, kernel in kernels.items()}
    else:
        steps = {name: _write_step(kernel, case, _caches(case, layers)) for name, kernel in kernels.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= 2:  # The first two compile and warm up.
                samples[name].append(time.perf_counter() - start)
    return {name: (statistics.median(values), min(values)) for name, values in samples.items()}


def _caches(case: AttentionCase | WriteCase, layers: int) -> list[tuple[jax.Array, jax.Array]]:
    """One cache per layer, or as many as fit in `_MAX_CACHE_BYTES`, in turn."""
    first, second = (1, 2) if isinstance(case, AttentionCase) else (0, 1)
    args = case.make()
    distinct = max(1, min(layers, _MAX_CACHE_BYTES // (2 * args[first].nbytes)))
    copies = [(args[first] + 0, args[second] + 0) for _ in range(distinct)]
    return [copies[i % distinct] for i in range(layers)]


def _attention_step(
    kernel: Callable[..., Any], case: AttentionCase, caches: list[tuple[jax.Array, jax.Array]]
) -> Callable[[], None]:
    q, _, _, *rest = case.make()

    @jax.jit
    def step(q, caches, rest):
        page_table, *rest = rest
        for k_cache, v_cache in caches:
            q = q + kernel(q, k_cache, v_cache, page_table, *rest, **case.kwargs)
            # In a model a layer's cache depends on the layer before. Without that XLA gathers all layers' pages first.
            page_table = page_table + jnp.isinf(q[0, 0, 0, 0]).astype(jnp.int32)
        return q

    return lambda: jax.block_until_ready(step(q, caches, rest))


def _write_step(
    kernel: Callable[..., Any], case: WriteCase, caches: list[tuple[jax.Array, jax.Array]]
) -> Callable[[], None]:
    _, _, k, v, kv_index = case.make()
    state = [jax.tree.map(jnp.copy, caches)]  # Donated, so its own.

    def step(caches, k, v, kv_index):
        return [kernel(k_cache, v_cache, k, v, kv_index) for k_cache, v_cache in caches]

    jitted = jax.jit(step, donate_argnums=0)

    def run() -> None:
        state[0] = jax.block_until_ready(jitted(state[0], k, v, kv_index))

    return run


def _filter_step(kernel: Callable[..., Any], case: FilterCase, layers: int) -> Callable[[], None]:
    args = case.make()

    @jax.jit
    def step(weights, top_k, top_p, min_p):
        for _ in range(layers):
            min_p = kernel(weights, top_k, top_p, min_p)
        return min_p

    return lambda: jax.block_until_ready(step(*args))


def _line(row: dict[str, Any], kernels: dict[str, Any]) -> str:
    def of(name: str) -> str:
        if f"refused_{name}" in row:
            return f"{name} refuses: {row[f'refused_{name}']}"
        if f"{name}_ms" not in row:
            return f"{name} error {row[f'error_{name}']:.1e}"
        return (
            f"{name} {row[f'{name}_ms']:8.2f} (least {row[f'{name}_least_ms']:8.2f}, error {row[f'error_{name}']:.1e})"
        )

    return f"{row['case']:36s} {'  '.join(map(of, kernels))}"


if __name__ == "__main__":
    main()
