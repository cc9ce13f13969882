"""`paged_prefill` as it is meant: every row against every token, float32, the whole page table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def paged_prefill(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    causal: bool = True,
    return_lse: bool = False,
) -> Any:
    """See `api.PagedPrefill`."""
    num_kv_heads, _, _, head_dim = k_cache.shape
    tokens = jnp.arange(q.shape[0])
    out = jnp.zeros(q.shape, jnp.float32)
    lse = jnp.full(q.shape[:3], -jnp.inf)
    for s in range(page_table.shape[0]):
        keys = k_cache[:, page_table[s]].reshape(num_kv_heads, -1, head_dim).astype(jnp.float32)
        values = v_cache[:, page_table[s]].reshape(num_kv_heads, -1, head_dim).astype(jnp.float32)
        key_positions = jnp.arange(keys.shape[1])
        query_positions = tokens - q_starts[s + 1] + kv_lens[s]
        visible = key_positions <= query_positions[:, None] if causal else key_positions < kv_lens[s]
        if window is not None:
            visible &= key_positions > query_positions[:, None] - window

        scores = scale * jnp.einsum("tkgh,kch->kgtc", q.astype(jnp.float32), keys)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(visible, scores, -jnp.inf)
        row_lse = jax.nn.logsumexp(scores, axis=-1)
        if sinks is not None:
            row_lse = jnp.logaddexp(row_lse, sinks[..., None])
        probs = jnp.exp(scores - row_lse[..., None])
        written = key_positions < kv_lens[s]
        values = jnp.where(written[:, None], values, 0)  # What is not written may be NaN, and 0 * NaN is NaN.
        row_out = jnp.einsum("kgtc,kch->tkgh", probs, values)
        in_row = (tokens >= q_starts[s]) & (tokens < q_starts[s + 1]) & (kv_lens[s] > 0)
        out = jnp.where(in_row[:, None, None, None], row_out, out)
        lse = jnp.where(in_row[:, None, None], row_lse.transpose(2, 0, 1), lse)
    out = out.astype(q.dtype)
    return (out, lse) if return_lse else out


paged_prefill.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]
