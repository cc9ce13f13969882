"""`paged_decode` for Hopper GPUs: one program per row and KV head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sgjax.kernels.mosaic_attention import BLOCK_ROWS, QueryBlocks, attend


def paged_decode(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """See `api.PagedDecode`. Raises `NotImplementedError` for what the kernel does not do."""
    num_rows, num_kv_heads, group, head_dim = q.shape
    if group > BLOCK_ROWS:
        raise NotImplementedError(f"{group} query heads per KV head, and this kernel takes up to {BLOCK_ROWS}")
    sequences = jnp.arange(num_rows, dtype=jnp.int32)
    blocks = QueryBlocks(
        sequence=sequences,
        kv_len=kv_lens,
        first_row=sequences * (num_kv_heads * group),
        num_rows=jnp.full_like(sequences, group),
        first_position=kv_lens - 1,
        row_offset=jnp.zeros_like(sequences),
    )
    out = attend(
        q.reshape(-1, head_dim),
        k_cache,
        v_cache,
        page_table,
        blocks,
        rows_per_token=group,
        rows_per_head=group,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
    )
    return out.reshape(q.shape)
