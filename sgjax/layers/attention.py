"""Paged attention of one layer: write the new keys and values, then attend over the rows' pages."""

from __future__ import annotations

import jax

from sgjax.kernels import Ops
from sgjax.layers.batch import ForwardBatch

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
    keys, values = ops.write_kv(*cache, k, v, batch.kv_index)
    if batch.decode:
        out = ops.paged_decode(
            q, keys, values, batch.page_table, batch.kv_lens, scale=scale, window=window, soft_cap=soft_cap
        )
    else:
        out = ops.paged_prefill(
            q,
            keys,
            values,
            batch.page_table,
            batch.kv_lens,
            batch.q_starts,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
        )
    return out, (keys, values)
