"""FlashAttention-3 by its binding for jax: decode over pages, prefill over keys in one piece."""

# pyright: reportMissingImports=false
# A peer is no dependency, and not installed where the types are checked.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import workloads
from benchmarks.gpu.measure import calls_past_the_cache, chain_s, page_tables, random_array
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import HEAD_DIM, HEADS, KV_HEADS, Decode, Prefill

_IMPL = "flash-attn3-jax"


def run(settings: Settings) -> None:
    for prefill in workloads.prefills(settings.tiny):
        if not report(prefill.name, _prefill, prefill, settings.seed, impl=_IMPL):
            return
    for decode in workloads.bfloat16_decodes(settings.tiny):
        report(decode.name, _decode, decode, settings.seed, impl=_IMPL)


def _load() -> Any:
    need("flash_attn3_jax")
    if jax.default_backend() == "cpu":
        raise NotImplementedError("flash-attn3-jax needs a GPU")
    import flash_attn3_jax

    return flash_attn3_jax


def _prefill(case: Prefill, seed: int) -> dict:
    """Its causal mask is aligned at the last query and the last key, as ours."""
    attend = functools.partial(_load().flash_mha, is_causal=True)
    keys_values = [random_array(seed + i, (1, case.kv_len, KV_HEADS, HEAD_DIM)) for i in range(2)]
    seconds = chain_s(
        lambda q, keys, values, _: attend(q, keys, values),
        (1, case.q_len, HEADS, HEAD_DIM),
        keys_values,
        [jnp.zeros(1, jnp.int32)] * (2 if case.kv_len > 8192 else 4),
        (),
        seed,
    )
    return {"seconds": seconds, "flops": case.flops}


def _decode(case: Decode, seed: int) -> dict:
    """With the best of some numbers of splits, which its caller has to choose."""
    attend = _load().flash_mha_with_kvcache
    pages_per_row = -(-case.kv_len // case.page_size)
    calls = calls_past_the_cache(case.bytes)
    num_pages = case.batch * pages_per_row * (calls if case.bytes * calls <= 1 << 30 else 1)
    caches = [random_array(seed + i, (num_pages, case.page_size, KV_HEADS, HEAD_DIM)) for i in range(2)]
    tables = page_tables(num_pages, calls, case.batch, pages_per_row, seed)
    kv_lens = (jnp.full(case.batch, case.kv_len, jnp.int32),)

    def with_splits(num_splits: int) -> Callable[..., jax.Array]:
        return lambda q, keys, values, table, kv_lens: attend(
            q, keys, values, cache_seqlens=kv_lens, page_table=table, num_splits=num_splits
        )

    q_shape = case.batch, 1, HEADS, HEAD_DIM
    found = {splits: chain_s(with_splits(splits), q_shape, caches, tables, kv_lens, seed) for splits in (1, 4, 16)}
    best = min(found, key=lambda splits: found[splits])
    return {"seconds": found[best], "bytes": case.bytes, "num_splits": best}
