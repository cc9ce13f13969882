"""`paged_prefill` in plain jnp: blocks of queries, each of one row, over blocks of its keys with an online softmax.

Both loops have the trip counts that the batch needs, so that padding of T, S and P costs nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_QUERY_BLOCK = 64
_KEY_BLOCK = 256
_MIN = float(jnp.finfo(jnp.float32).min)


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
) -> jax.Array:
    """See `api.PagedPrefill`."""
    num_tokens, num_kv_heads, group, head_dim = q.shape
    page_size = k_cache.shape[2]
    pages_per_block = max(1, _KEY_BLOCK // page_size)
    page_table = _pad_columns(page_table, pages_per_block)
    queries = jnp.pad(q, ((0, _QUERY_BLOCK), (0, 0), (0, 0), (0, 0))).astype(k_cache.dtype)
    blocks_per_row = -(-(q_starts[1:] - q_starts[:-1]) // _QUERY_BLOCK)
    last_block = jnp.cumsum(blocks_per_row)

    def query_block(i, out):
        row = jnp.searchsorted(last_block, i, side="right")
        start = q_starts[row] + (i - last_block[row] + blocks_per_row[row]) * _QUERY_BLOCK
        tokens = start + jnp.arange(_QUERY_BLOCK)
        q_positions = tokens - q_starts[row + 1] + kv_lens[row]
        block = jax.lax.dynamic_slice_in_dim(queries, start, _QUERY_BLOCK)
        block = block.transpose(1, 2, 0, 3).reshape(num_kv_heads, group * _QUERY_BLOCK, head_dim)

        def key_block(j, carry):
            total, max_score, acc = carry
            page_ids = jax.lax.dynamic_slice(page_table, (row, j * pages_per_block), (1, pages_per_block))[0]
            keys = k_cache[:, page_ids].reshape(num_kv_heads, -1, head_dim)
            values = v_cache[:, page_ids].reshape(num_kv_heads, -1, head_dim)
            positions = j * pages_per_block * page_size + jnp.arange(keys.shape[1])
            visible = positions <= q_positions[:, None]
            if window is not None:
                visible &= positions > q_positions[:, None] - window
            visible = jnp.tile(visible, (group, 1))

            scores = scale * jnp.einsum("kqh,kch->kqc", block, keys, preferred_element_type=jnp.float32)
            if soft_cap is not None:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            scores = jnp.where(visible, scores, _MIN)
            new_max = jnp.maximum(max_score, scores.max(-1))
            weights = jnp.where(visible, jnp.exp(scores - new_max[..., None]), 0)
            values = jnp.where((positions < kv_lens[row])[:, None], values, 0)
            fresh = jnp.einsum("kqc,kch->kqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            decay = jnp.exp(max_score - new_max)
            return total * decay + weights.sum(-1), new_max, acc * decay[..., None] + fresh

        keys_per_block = pages_per_block * page_size
        end = jnp.minimum(q_positions[-1] + 1, kv_lens[row])
        first = 0 if window is None else jnp.maximum(q_positions[0] - window + 1, 0) // keys_per_block
        stats = (num_kv_heads, group * _QUERY_BLOCK)
        carry = (jnp.zeros(stats), jnp.full(stats, _MIN), jnp.zeros((*stats, head_dim)))
        total, _, acc = jax.lax.fori_loop(first, -(-end // keys_per_block), key_block, carry)

        result = (acc / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]).astype(q.dtype)
        result = result.reshape(num_kv_heads, group, _QUERY_BLOCK, head_dim).transpose(2, 0, 1, 3)
        # Past the row's end this writes zeros, which the next row's blocks replace: the loop goes in token order.
        result = jnp.where((tokens < q_starts[row + 1])[:, None, None, None], result, 0)
        return jax.lax.dynamic_update_slice_in_dim(out, result, start, 0)

    out = jnp.zeros(queries.shape, q.dtype)
    return jax.lax.fori_loop(0, last_block[-1], query_block, out)[:num_tokens]


def _pad_columns(page_table: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(page_table, ((0, 0), (0, -page_table.shape[1] % multiple)))
