"""Every kernel against the reference, and the attention kernels against the device's ceilings."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.gpu.measure import Settings, median_s, random_array, random_cache, relative_error, report
from sgjax.kernels import OP_NAMES, resolve
from sgjax.kernels.cases import AttentionCase, WriteCase

MIB = 1 << 20
HEADS: dict[str, Any] = dict(num_kv_heads=8, group=4, head_dim=128)  # Llama-3.1-8B's
BYTES_PER_TOKEN = 2 * 2 * 8 * 128  # bf16 keys and values of one layer
# tf32 products, XLA's default for float32 on a GPU, come to 3e-4; bf16 operands to 1e-3 .. 1e-2.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2}

_LLAMA_CASES = {
    "write_kv": [WriteCase(num_tokens=300, num_padding=44, num_kv_heads=8, head_dim=128, num_pages=64)],
    "paged_decode": [
        AttentionCase(kv_lens=(2048, 1000, 37, 0, 1, 4097, 64, 65), page_size=page_size, **HEADS)
        for page_size in (16, 64, 128)
    ],
    "paged_prefill": [
        AttentionCase(q_lens=(512, 64, 1, 300), kv_lens=(512, 2000, 300, 4000), page_size=page_size, **HEADS)
        for page_size in (16, 64, 128)
    ],
}


def check_xla(settings: Settings) -> None:
    _check_all("xla", settings)


def check_mosaic(settings: Settings) -> None:
    _check_all("mosaic", settings)


def _check_all(impl: str, settings: Settings) -> None:
    """Every op on fresh random data; the caches hold NaN wherever no token is."""
    for op in OP_NAMES:
        every = (*_LLAMA_CASES[op], *importlib.import_module(f"sgjax.kernels.{op}.specs").PARITY)
        cases = [case for case in every if impl != "mosaic" or case.dtype == "bfloat16"]
        for case in cases[len(_LLAMA_CASES[op]) :][1:2] if settings.tiny else cases:
            report(f"{op} {impl} {case.name}", _check, op, impl, case, settings.seed)


def _check(op: str, impl: str, case: AttentionCase | WriteCase, seed: int) -> dict:
    args = case.make(seed)
    with jax.default_matmul_precision("highest"):
        wide = [a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
        expected = _run_once(_resolved(op, "reference"), wide, case)
    with _on_this_device(impl):
        out = jax.block_until_ready(_run_once(_resolved(op, impl), args, case))
    tolerance = 0.0 if op == "write_kv" else TOLERANCES[case.dtype]
    return {"error": relative_error(out, expected), "tolerance": tolerance}


def _run_once(function: Callable[..., Any], args: Sequence[jax.Array], case: AttentionCase | WriteCase) -> Any:
    """Without autotuning, which would take longer than all the rest."""
    lowered = jax.jit(lambda *a: function(*a, **case.kwargs)).lower(*args)
    return lowered.compile({"xla_gpu_autotune_level": 0})(*args)


def _on_this_device(impl: str) -> contextlib.AbstractContextManager[Any]:
    """The Hopper kernels run on a CPU in their interpreter."""
    if impl == "mosaic" and jax.default_backend() == "cpu":
        return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    return contextlib.nullcontext()


def time_decode(settings: Settings) -> None:
    """`paged_decode` of one layer against the bytes of keys and values that it must read.

    For want of time XLA, there for comparison, leaves out the largest cases, and pages of 16 tokens all but batch 64.
    """
    batches = (3,) if settings.tiny else (64, 1, 8, 256)
    lens = (64,) if settings.tiny else (4096, 8192, 1024)
    for page_size in (64, 16):
        caches = _caches(settings, max(batches) * max(lens), page_size)
        for impl in settings.implementations:
            for kv_len, batch in itertools.product(lens, batches):
                compared = page_size == 64 if batch * kv_len <= 64 * 4096 else False
                if compared if impl == "xla" else page_size == 64 or batch == 64:
                    name = f"{impl} batch {batch} kv {kv_len} page {page_size}"
                    report(name, _decode, impl, caches, batch, kv_len, settings.seed)


def _decode(impl: str, caches: tuple[jax.Array, jax.Array], batch: int, kv_len: int, seed: int) -> dict:
    q_shape = (batch, HEADS["num_kv_heads"], HEADS["group"], HEADS["head_dim"])
    kernel = jax.jit(functools.partial(_resolved("paged_decode", impl), scale=HEADS["head_dim"] ** -0.5))
    kv_lens = jnp.full(batch, kv_len, jnp.int32)
    must_read = batch * kv_len * BYTES_PER_TOKEN
    # Many calls in one program, so that launching it costs nothing, over more pages than the L2 cache holds.
    calls = min(32, max(4, -(-256 * MIB // must_read))) if impl == "mosaic" else 4
    seconds = _time_chain(
        kernel, q_shape, caches, _page_tables(caches[0], calls, batch, kv_len, seed), (kv_lens,), seed
    )
    return {"seconds": seconds, "bytes": must_read}


def time_prefill(settings: Settings) -> None:
    """`paged_prefill` of one layer: whole prompts, and a part that extends a cached prefix."""
    lens = ((64, 192),) if settings.tiny else tuple((n << 10, n << 10) for n in (8, 1, 2, 4, 16))
    caches = _caches(settings, 2 * max(kv_len for _, kv_len in lens), 64)
    for impl in settings.implementations:
        for q_len, kv_len in lens if settings.tiny else (*lens, (512, 8192)):
            if impl != "xla" or kv_len <= 4096:  # XLA's loops of small kernels would take seconds.
                report(f"{impl} {q_len} of {kv_len}", _prefill, impl, caches, q_len, kv_len, settings.seed)


def _prefill(impl: str, caches: tuple[jax.Array, jax.Array], q_len: int, kv_len: int, seed: int) -> dict:
    q_shape = (q_len, HEADS["num_kv_heads"], HEADS["group"], HEADS["head_dim"])
    kernel = jax.jit(functools.partial(_resolved("paged_prefill", impl), scale=HEADS["head_dim"] ** -0.5))
    rows = jnp.array([kv_len], jnp.int32), jnp.array([0, q_len], jnp.int32)
    tables = _page_tables(caches[0], 4 if impl == "mosaic" else 1, 1, kv_len, seed)
    num_scores = q_len * kv_len - q_len * (q_len - 1) // 2
    flops = 4 * HEADS["num_kv_heads"] * HEADS["group"] * HEADS["head_dim"] * num_scores
    return {"seconds": _time_chain(kernel, q_shape, caches, tables, rows, seed), "flops": flops}


def _resolved(op: str, impl: str) -> Callable[..., Any]:
    return getattr(resolve(f"*={impl}", jax.default_backend()), op)


def _caches(settings: Settings, num_tokens: int, page_size: int) -> tuple[jax.Array, jax.Array]:
    num_pages, kv_heads = -(-num_tokens // page_size), HEADS["num_kv_heads"]
    k_cache, v_cache = (
        random_cache(settings.seed + i, kv_heads, num_pages, page_size, HEADS["head_dim"]) for i in range(2)
    )
    return k_cache, v_cache


def _page_tables(cache: jax.Array, calls: int, batch: int, kv_len: int, seed: int) -> list[jax.Array]:
    """One (S, P) per call, each over other pages as far as there are others."""
    _, num_pages, page_size, _ = cache.shape
    shuffled = np.random.default_rng(seed).permutation(num_pages).astype(np.int32)
    shape = (calls, batch, -(-kv_len // page_size))
    return list(jnp.asarray(np.resize(shuffled, shape)))


def _time_chain(kernel: Any, q_shape: tuple, caches: Any, tables: list, rows: tuple, seed: int) -> float:
    """Seconds of one call in a chain of them, in which each one's output is the next one's query."""

    @jax.jit
    def chain(q: jax.Array, caches: Any, tables: list[jax.Array], rows: Any) -> jax.Array:
        for page_table in tables:
            q = kernel(q, *caches, page_table, *rows)
        return q

    q = random_array(seed, q_shape)
    return median_s(lambda i: chain(q, caches, tables, rows), calls=2) / len(tables)
