"""`paged_decode` as it is meant: one row after the other, float32, the whole page table."""

from __future__ import annotations

from typing import Any

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
    sinks: jax.Array | None = None,
    return_lse: bool = False,
) -> Any:
    """See `api.PagedDecode`."""
    num_kv_heads, _, _, head_dim = k_cache.shape
    rows, lses = [], []
    for s in range(q.shape[0]):
        keys = k_cache[:, page_table[s]].reshape(num_kv_heads, -1, head_dim).astype(jnp.float32)
        values = v_cache[:, page_table[s]].reshape(num_kv_heads, -1, head_dim).astype(jnp.float32)
        key_positions = jnp.arange(keys.shape[1])
        query_position = kv_lens[s] - 1
        visible = key_positions <= query_position
        if window is not None:
            visible &= key_positions > query_position - window

        scores = scale * jnp.einsum("kgh,kch->kgc", q[s].astype(jnp.float32), keys)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(visible, scores, -jnp.inf)
        lse = jax.nn.logsumexp(scores, axis=-1)
        if sinks is not None:
            lse = jnp.logaddexp(lse, sinks)
        probs = jnp.exp(scores - lse[..., None])
        values = jnp.where(visible[:, None], values, 0)  # What is not visible may be NaN, and 0 * NaN is NaN.
        out = jnp.einsum("kgc,kch->kgh", probs, values)
        rows.append(jnp.where(kv_lens[s] > 0, out, 0))
        lses.append(jnp.where(kv_lens[s] > 0, lse, -jnp.inf))
    result = jnp.stack(rows).astype(q.dtype)
    return (result, jnp.stack(lses)) if return_lse else result


paged_decode.time_grows_with_table = True  # pyright: ignore[reportFunctionMemberAccess]
paged_decode.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]
