"""`paged_decode` in plain jnp: gather the pages, two batched products."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
    """See `api.PagedDecode`."""
    num_kv_heads, _, page_size, head_dim = k_cache.shape
    num_rows, max_pages = page_table.shape
    kv_shape = (num_kv_heads, num_rows, max_pages * page_size, head_dim)
    keys = k_cache[:, page_table].reshape(kv_shape)
    values = v_cache[:, page_table].reshape(kv_shape)

    key_positions = jnp.arange(max_pages * page_size)
    visible = key_positions < kv_lens[:, None]
    if window is not None:
        visible &= key_positions >= kv_lens[:, None] - window

    queries = q.swapaxes(0, 1).astype(keys.dtype)
    scores = scale * jnp.einsum("ksgh,ksch->ksgc", queries, keys, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    # A finite minimum keeps padding rows, where nothing is visible, free of NaN.
    scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)) * visible[:, None]
    values = jnp.where(visible[..., None], values, 0)
    out = jnp.einsum("ksgc,ksch->ksgh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    out /= jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return out.swapaxes(0, 1).astype(q.dtype)
