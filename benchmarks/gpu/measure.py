"""Clocks, relative errors and random arrays of the parts that run jax."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def median_s(call: Callable[[int], Any], calls: int, repeats: int = 7) -> float:
    """Seconds of one call: the median over repeats, in each of which `calls` are queued before anything is waited for.

    Args:
      call: given the number of the call, so that it can rotate its inputs; returns arrays of its last result.
    """
    for i in range(2):
        jax.block_until_ready(call(i))
    samples = []
    for repeat in range(repeats):
        start = time.perf_counter()
        results = [call(repeat * calls + i) for i in range(calls)]
        jax.block_until_ready(results[-1])
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


def chain_s(
    kernel: Callable[..., jax.Array], q_shape: Sequence[int], caches: Any, tables: list[jax.Array], rows: Any, seed: int
) -> float:
    """Seconds of one `kernel(q, *caches, page_table, *rows)`, among one call per page table in a single program.

    Each call's output is the next one's query, so launching costs nothing, and no two run at once.
    """
    kernel = jax.jit(kernel)  # Traced once for all calls.

    @jax.jit
    def chain(q: jax.Array, caches: Any, tables: list[jax.Array], rows: Any) -> jax.Array:
        for page_table in tables:
            q = kernel(q, *caches, page_table, *rows)
        return q

    q = random_array(seed, q_shape)
    return median_s(lambda i: chain(q, caches, tables, rows), calls=2) / len(tables)


def calls_past_the_cache(num_bytes: int) -> int:
    """How many calls, each over `num_bytes` of its own, read more than the L2 cache holds; at least 4, at most 32."""
    return min(32, max(4, -(-(256 << 20) // num_bytes)))


def relative_error(out: Any, reference: Any) -> float:
    """||out - reference|| / ||reference|| in float32 over all leaves; NaN in either gives NaN.

    Infinities, the log-sum-exp of padding, must be equal.
    """
    difference = squares = 0.0
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(reference), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        difference += float(jnp.sum(jnp.where(a == b, 0, a - b) ** 2))
        squares += float(jnp.sum(jnp.where(jnp.isinf(b), 0, b) ** 2))
    if squares == 0:
        return difference  # Nothing but padding: the output has to be zero too.
    return (difference / squares) ** 0.5


def random_array(seed: int, shape: Sequence[int], dtype: Any = jnp.bfloat16) -> jax.Array:
    """Normal, made on the device."""
    return _normal(seed, tuple(shape), jnp.dtype(dtype).name)


@jax.jit(static_argnames=("shape", "dtype"))
def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    wide = dtype if dtype in ("bfloat16", "float32") else "bfloat16"
    return jax.random.normal(jax.random.key(seed), shape, wide).astype(dtype)


def random_caches(
    seed: int, num_kv_heads: int, num_pages: int, page_size: int, head_dim: int, dtype: Any = jnp.bfloat16
) -> tuple[jax.Array, jax.Array]:
    """Keys and values (K, N, page, H). Of a large pool 1024 pages repeat: drawing gigabytes takes as much again."""
    distinct = min(num_pages, 1024)
    repeat = jax.jit(lambda pages: jnp.take(pages, jnp.arange(num_pages) % distinct, axis=1))
    drawn = (random_array(seed + i, (num_kv_heads, distinct, page_size, head_dim), dtype) for i in range(2))
    k_cache, v_cache = map(repeat, drawn)
    return k_cache, v_cache


def page_tables(num_pages: int, calls: int, batch: int, pages_per_row: int, seed: int) -> list[jax.Array]:
    """One (S, P) per call, shuffled, each over other pages as far as there are others."""
    shuffled = np.random.default_rng(seed).permutation(num_pages).astype(np.int32)
    return list(jnp.asarray(np.resize(shuffled, (calls, batch, pages_per_row))))
