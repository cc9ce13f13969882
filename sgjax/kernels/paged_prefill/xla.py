"""`paged_prefill` in plain jnp, shaped by measurement on a CPU.

The rows' queries are cut into blocks, a few of which at a time go over blocks of their rows' keys with an online
softmax. Both loops end where the batch's real work does, so that padding of T, S and P costs nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgjax.kernels.paged_decode.xla import finish, gather_tiles, product_dtype

_KEY_BLOCK = 256
_BLOCKS_PER_TURN = 4
_MIN = -1e30  # Finite: where nothing is visible, exp(score - max) must not be NaN.


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
    num_tokens, num_kv_heads, group, head_dim = q.shape
    num_pages, page_size = k_cache.shape[1:3]
    num_rows, max_pages = page_table.shape
    query_block = 64 if num_tokens >= 64 * num_rows else 32
    block_pages = max(1, min(_KEY_BLOCK // page_size, max_pages))
    key_block = block_pages * page_size
    max_blocks = (num_tokens + num_rows * (query_block - 1)) // query_block
    per_turn = min(_BLOCKS_PER_TURN, max_blocks)
    max_blocks = -(-max_blocks // per_turn) * per_turn

    # Query block b is of row `row[b]`; row s owns the blocks [first_block[s], last_block[s]).
    num_blocks = -(-(q_starts[1:] - q_starts[:-1]) // query_block)
    last_block = jnp.cumsum(num_blocks)
    first_block = last_block - num_blocks
    row = _segment(last_block, max_blocks)
    first_token = q_starts[row] + (jnp.arange(max_blocks) - first_block[row]) * query_block
    tokens = first_token[:, None] + jnp.arange(query_block)
    # Queries past their row's end see no key; the last join drops them.
    positions = tokens + (kv_lens - q_starts[1:])[row][:, None] if causal else (kv_lens - 1)[row][:, None]
    positions = jnp.where(tokens < q_starts[1:][row][:, None], positions, -1)

    dtype = product_dtype(q, k_cache)
    queries = jnp.take(q.astype(dtype), tokens.reshape(-1), axis=0, mode="clip")
    queries = queries.reshape(max_blocks, query_block, num_kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4).reshape(max_blocks, num_kv_heads, group * query_block, head_dim)
    table = jnp.pad(page_table, ((0, 0), (0, -max_pages % block_pages))).reshape(num_rows, -1, block_pages)
    first_tile = jnp.arange(num_kv_heads)[:, None] * num_pages
    shape = (per_turn, num_kv_heads, group, query_block)

    def turn(i, results):
        def mine(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * per_turn, per_turn)

        q_rows, q_positions, q_block = mine(row), mine(positions), mine(queries).reshape(-1, *queries.shape[2:])

        def key_turn(j, carry):
            total, peak, acc = carry
            tile_ids = first_tile + table[q_rows, j][:, None]
            kv_shape = (per_turn * num_kv_heads, key_block, head_dim)
            tiles = (gather_tiles(cache, tile_ids) for cache in (k_cache, v_cache))
            keys, values = (tile.reshape(kv_shape).astype(dtype) for tile in tiles)
            key_positions = j * key_block + jnp.arange(key_block)
            visible = key_positions <= q_positions[..., None]
            if window is not None:
                visible &= key_positions > q_positions[..., None] - window
            visible = jnp.broadcast_to(visible[:, None, None], (*shape, key_block)).reshape(*total.shape, key_block)

            scores = scale * jnp.einsum("bqh,bch->bqc", q_block, keys, preferred_element_type=jnp.float32)
            if soft_cap is not None:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            scores = jnp.where(visible, scores, _MIN)
            new_peak = jnp.maximum(peak, scores.max(-1))
            weights = jnp.exp(scores - new_peak[..., None])
            decay = jnp.exp(peak - new_peak)
            written = jnp.repeat(key_positions < kv_lens[q_rows][:, None], num_kv_heads, axis=0)
            values = jnp.where(written[..., None], values, 0)  # 0 * NaN is NaN.
            new = jnp.einsum("bqc,bch->bqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            return total * decay + weights.sum(-1), new_peak, acc * decay[..., None] + new

        begin = 0 if window is None else jnp.maximum(_first_visible(q_positions, window), 0) // key_block
        end = -(-(q_positions.max() + 1) // key_block)
        stats = (per_turn * num_kv_heads, group * query_block)
        # The peak starts above `_MIN`, so that what is not visible weighs exp(_MIN - peak), exactly 0.
        start = (jnp.zeros(stats), jnp.full(stats, _MIN / 2), jnp.zeros((*stats, head_dim)))
        total, peak, acc = (x.reshape(*shape, *x.shape[2:]) for x in jax.lax.fori_loop(begin, end, key_turn, start))
        result = finish(q, acc, peak, total, None if sinks is None else sinks[..., None], return_lse=True)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, jnp.moveaxis(part, 3, 1), i * per_turn, 0)
            for whole, part in zip(results, result, strict=True)
        )

    results = (
        jnp.zeros((max_blocks, query_block, *q.shape[1:]), q.dtype),
        jnp.zeros((max_blocks, query_block, num_kv_heads, group)),
    )
    outs, lses = jax.lax.fori_loop(0, -(-last_block[-1] // per_turn), turn, results)

    token_row = _segment(q_starts[1:], num_tokens)
    source = first_block[token_row] * query_block + jnp.arange(num_tokens) - q_starts[token_row]
    in_row = (jnp.arange(num_tokens) >= q_starts[0]) & (jnp.arange(num_tokens) < q_starts[-1])

    def of_tokens(x: jax.Array, shape: tuple[int, ...], outside: float) -> jax.Array:
        found = jnp.take(x.reshape(max_blocks * query_block, -1), source, axis=0, mode="clip")
        return jnp.where(in_row[:, None], found, outside).reshape(shape)

    out = of_tokens(outs, q.shape, 0)
    return (out, of_tokens(lses, q.shape[:3], -jnp.inf)) if return_lse else out


paged_prefill.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


def _segment(ends: jax.Array, size: int) -> jax.Array:
    """Which segment each of `size` consecutive items is in, given where each ends; the last one for what is past it."""
    index = jnp.searchsorted(ends, jnp.arange(size), side="right", method="compare_all")
    return jnp.minimum(index, ends.size - 1)


def _first_visible(positions: jax.Array, window: int) -> jax.Array:
    """The first key that any query (a position of at least 0) sees."""
    return jnp.where(positions >= 0, positions, jnp.iinfo(jnp.int32).max).min() - window + 1
