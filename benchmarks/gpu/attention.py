"""The attention kernels, one layer of Llama-3.1-8B, against the device's ceilings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import workloads
from benchmarks.gpu.measure import (
    calls_past_the_cache,
    chain_s,
    page_tables,
    random_array,
    random_caches,
    relative_error,
)
from benchmarks.gpu.report import Settings, report
from benchmarks.gpu.workloads import GROUP, HEAD_DIM, KV_HEADS, Cascade, Decode, Prefill
from sgjax.kernels import resolve
from sgjax.kernels.lse import merge

_XLA_MAX_TOKENS = 64 * 4096  # XLA is there for comparison: the largest cases would take seconds.


def time_decode(settings: Settings) -> None:
    """`paged_decode` of every kind of row, against the bytes of keys and values that it must read."""
    for case in workloads.decodes(settings.tiny):
        for impl in _implementations():
            if impl != "xla" or (case.batch * case.kv_len <= _XLA_MAX_TOKENS and case.page_size == 64):
                report(case.name, decode, kernel("paged_decode", impl), case, settings, impl=_label(impl))


def time_prefill(settings: Settings) -> None:
    """`paged_prefill`: whole prompts, and extensions of a cached prefix."""
    for case in workloads.prefills(settings.tiny):
        for impl in _implementations():
            if impl != "xla" or case.kv_len <= 4096:
                report(case.name, prefill, kernel("paged_prefill", impl), case, settings, impl=_label(impl))


def time_cascade(settings: Settings) -> None:
    """A decode step whose rows share a prefix: as if they did not, and with the prefix read once."""
    case = workloads.cascade(settings.tiny)
    impl = _implementations()[0]
    args = _shared_prefix(case, settings.seed)
    flat, cascade = kernel("paged_decode", impl), _in_two_parts(impl, case.prefix)

    def seconds(step: Callable[..., jax.Array]) -> dict:
        q, k_cache, v_cache, page_table, kv_lens = args
        calls = 1 if settings.tiny else 4
        tables = [page_table] * calls
        return {
            "seconds": chain_s(step, q.shape, (k_cache, v_cache), tables, (kv_lens,), settings.seed),
            "bytes": case.bytes,
        }

    def error() -> dict:
        return {"error": relative_error(jax.jit(cascade)(*args), jax.jit(flat)(*args)), "tolerance": 1e-2}

    report(case.name, seconds, flat, impl="flat")
    report(case.name, seconds, cascade, impl="cascade")
    report(case.name, error, impl="cascade against flat")


def _shared_prefix(case: Cascade, seed: int) -> tuple[jax.Array, ...]:
    """The arguments of a `paged_decode` whose rows' page tables begin with the same pages."""
    prefix_pages, own_pages = case.prefix // case.page_size, -(-case.suffix // case.page_size)
    num_pages = prefix_pages + case.batch * own_pages
    pages = np.random.default_rng(seed).permutation(num_pages).astype(np.int32)
    own = pages[prefix_pages:].reshape(case.batch, own_pages)
    shared = np.broadcast_to(pages[:prefix_pages], (case.batch, prefix_pages))
    return (
        random_array(seed, (case.batch, KV_HEADS, GROUP, HEAD_DIM)),
        *random_caches(seed, KV_HEADS, num_pages, case.page_size, HEAD_DIM),
        jnp.asarray(np.concatenate([shared, own], axis=1)),
        jnp.full(case.batch, case.prefix + case.suffix, jnp.int32),
    )


def _in_two_parts(impl: str, prefix: int) -> Callable[..., jax.Array]:
    """A decode step that reads the first `prefix` tokens, which all rows share, once."""
    over_prefix = functools.partial(kernel("paged_prefill", impl), causal=False, return_lse=True)
    over_rest = functools.partial(kernel("paged_decode", impl), return_lse=True)

    def step(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array, page_table: jax.Array, kv_lens: jax.Array):
        prefix_pages = prefix // k_cache.shape[2]
        all_queries = jnp.array([0, len(q)], jnp.int32)
        shared = page_table[:1, :prefix_pages], jnp.array([prefix], jnp.int32), all_queries
        first = over_prefix(q, k_cache, v_cache, *shared)
        rest = over_rest(q, k_cache, v_cache, page_table[:, prefix_pages:], kv_lens - prefix)
        return merge(*first, *rest)[0].astype(q.dtype)

    return step


def _implementations() -> tuple[str, ...]:
    return ("xla",) if jax.default_backend() == "cpu" else ("mosaic", "xla")


def _label(impl: str) -> str:
    return "sgjax" if impl == "mosaic" else impl


def kernel(op: str, impl: str) -> Callable[..., Any]:
    device = jax.devices()[0]
    return functools.partial(
        getattr(resolve(f"*={impl}", device.platform, device.device_kind), op), scale=HEAD_DIM**-0.5
    )


def decode(function: Callable[..., Any], case: Decode, settings: Settings) -> dict:
    """Over more pages than the L2 cache holds, as far as the device has room for them."""
    pages_per_row = -(-case.kv_len // case.page_size)
    calls = 2 if settings.tiny else calls_past_the_cache(case.bytes)
    num_pages = case.batch * pages_per_row * (calls if case.bytes * calls <= 1 << 30 else 1)
    caches = random_caches(settings.seed, KV_HEADS, num_pages, case.page_size, HEAD_DIM, case.kv_dtype)
    tables = page_tables(num_pages, calls, case.batch, pages_per_row, settings.seed)
    kv_lens = jnp.full(case.batch, case.kv_len, jnp.int32)
    q_shape = case.batch, KV_HEADS, GROUP, HEAD_DIM
    return {"seconds": chain_s(function, q_shape, caches, tables, (kv_lens,), settings.seed), "bytes": case.bytes}


def prefill(function: Callable[..., Any], case: Prefill, settings: Settings) -> dict:
    """One layer after the other, each over other pages."""
    pages_per_row = -(-case.kv_len // case.page_size)
    calls = 2 if settings.tiny or case.kv_len > 8192 else 4
    caches = random_caches(settings.seed, KV_HEADS, calls * pages_per_row, case.page_size, HEAD_DIM)
    tables = page_tables(calls * pages_per_row, calls, 1, pages_per_row, settings.seed)
    rows = jnp.array([case.kv_len], jnp.int32), jnp.array([0, case.q_len], jnp.int32)
    q_shape = case.q_len, KV_HEADS, GROUP, HEAD_DIM
    return {"seconds": chain_s(function, q_shape, caches, tables, rows, settings.seed), "flops": case.flops}
