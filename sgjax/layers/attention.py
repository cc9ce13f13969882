"""Paged attention of one layer: write the new keys and values, then attend over the rows' pages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgjax.kernels import Ops
from sgjax.kernels.lse import merge
from sgjax.layers.batch import ForwardBatch, SharedPrefixes

LayerCache = tuple[jax.Array, jax.Array]
"""One layer's keys and values, (K, N, page, H) each."""


def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    batch: ForwardBatch,
    cache: LayerCache,
    ops: Ops,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, LayerCache]:
    """Causal attention of the batch's tokens over everything their rows hold, themselves included.

    Args:
      q: (T, K, G, H). k, v: (T, K, H), already rotated.
      cache: consumed; use the one that is returned.
      scale, window, soft_cap: static, as in `sgjax.kernels.paged_decode.api`.

    Returns:
      (T, K, G, H), zeros for padding tokens, and the cache with k and v in it.
    """
    k, v = (_saturated(x, part.dtype) for x, part in zip((k, v), cache, strict=True))
    cache = ops.write_kv(*cache, k, v, batch.kv_index)
    rows = batch.page_table, batch.kv_lens
    options: dict[str, Any] = dict(scale=scale, soft_cap=soft_cap)
    if not batch.decode:
        out = ops.paged_prefill(q, *cache, *rows, batch.q_starts, window=window, **options)
    elif batch.shared is None or window is not None:  # A window leaves little of a shared prefix to be seen.
        out = ops.paged_decode(q, *cache, *rows, window=window, **options)
    else:
        out = _cascade(q, cache, *rows, batch.shared, ops, **options)
    return out, cache


def _saturated(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Clipped to what an 8-bit cache can hold: a cast alone makes NaN of what is beyond."""
    if dtype.itemsize > 1:
        return x
    most = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -most, most)


def _cascade(
    q: jax.Array,
    cache: LayerCache,
    page_table: jax.Array,
    kv_lens: jax.Array,
    shared: SharedPrefixes,
    ops: Ops,
    **options: Any,
) -> jax.Array:
    """Decode attention that reads each shared prefix once, for all rows of its group, and joins what they hold alone.

    After Hydragen (Juravsky et al., 2024) and FlashInfer's cascade.
    """
    num_rows, max_pages = page_table.shape
    leaders = jnp.minimum(shared.starts[:-1], num_rows - 1)
    groups = page_table[leaders], shared.lens, shared.starts
    prefix = ops.paged_prefill(q, *cache, *groups, causal=False, return_lse=True, **options)

    group = jnp.sum(jnp.arange(num_rows)[:, None] >= shared.starts[1:], axis=1)
    skipped = jnp.append(shared.lens, 0)[group]
    page_size = cache[0].shape[2]
    columns = jnp.minimum(jnp.arange(max_pages) + skipped[:, None] // page_size, max_pages - 1)
    own_table = jnp.take_along_axis(page_table, columns, axis=1)
    own = ops.paged_decode(q, *cache, own_table, jnp.maximum(kv_lens - skipped, 0), return_lse=True, **options)
    return merge(*prefix, *own)[0].astype(q.dtype)
