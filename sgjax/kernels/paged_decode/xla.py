"""`paged_decode` in plain jnp, shaped by measurement on a CPU.

The rows' keys are cut into blocks, and the blocks of all rows form one flat list of equal items (flash-decoding's split
over keys), worked off a few at a time by a loop that ends when the batch's real blocks are done. So padding of S and P
costs nothing, rows of unequal length leave no idle work, and what a turn gathers stays in the cores' caches. Partial
results are joined at the end by their softmax statistics.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgjax.kernels.lse import add_sinks

_BLOCK_TOKENS = 256
_ITEMS_PER_TURN = 16
_MIN = -1e30  # Finite: where nothing is visible, exp(score - max) must not be NaN.


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
    num_kv_heads, num_pages, page_size, head_dim = k_cache.shape
    (num_rows, max_pages), group = page_table.shape, q.shape[2]
    block_pages = max(1, min(_BLOCK_TOKENS // page_size, max_pages))
    block_tokens = block_pages * page_size
    max_blocks = -(-max_pages // block_pages)
    per_turn = min(_ITEMS_PER_TURN, num_rows * max_blocks)
    num_items = -(-num_rows * max_blocks // per_turn) * per_turn

    # Item i is block `block[i]` of row `row[i]`; row s owns the items [first_item[s], last_item[s]).
    first_visible = jnp.zeros_like(kv_lens) if window is None else jnp.maximum(kv_lens - window, 0)
    first_block = first_visible // block_tokens
    num_blocks = -(-kv_lens // block_tokens) - first_block
    last_item = jnp.cumsum(num_blocks)
    first_item = last_item - num_blocks
    items = jnp.arange(num_items)
    row = jnp.minimum(jnp.searchsorted(last_item, items, side="right", method="compare_all"), num_rows - 1)
    block = jnp.clip(items - first_item[row] + first_block[row], 0, max_blocks - 1)

    table = jnp.pad(page_table, ((0, 0), (0, max_blocks * block_pages - max_pages)))
    page_ids = table.reshape(num_rows * max_blocks, block_pages)[row * max_blocks + block]
    tile_ids = page_ids[:, None] + jnp.arange(num_kv_heads)[:, None] * num_pages
    start = jnp.where(items < last_item[-1], first_visible[row] - block * block_tokens, 0)
    stop = jnp.where(items < last_item[-1], kv_lens[row] - block * block_tokens, 0)
    dtype = product_dtype(q, k_cache)
    queries = q.astype(dtype)[row]

    def turn(i, partial):
        def mine(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * per_turn, per_turn)

        shape = (per_turn * num_kv_heads, block_tokens, head_dim)
        tiles = (gather_tiles(cache, mine(tile_ids)) for cache in (k_cache, v_cache))
        keys, values = (tile.reshape(shape).astype(dtype) for tile in tiles)
        offsets = jnp.arange(block_tokens)
        visible = (offsets >= mine(start)[:, None]) & (offsets < mine(stop)[:, None])
        visible = jnp.repeat(visible, num_kv_heads, axis=0)

        queries_now = mine(queries).reshape(-1, group, head_dim)
        scores = scale * jnp.einsum("igh,ich->igc", queries_now, keys, preferred_element_type=jnp.float32)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(visible[:, None], scores, _MIN)
        peak = scores.max(-1)
        weights = jnp.where(visible[:, None], jnp.exp(scores - peak[..., None]), 0)
        values = jnp.where(visible[..., None], values, 0)  # 0 * NaN is NaN.
        out = jnp.einsum("igc,ich->igh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part.reshape(per_turn, *whole.shape[1:]), i * per_turn, 0)
            for whole, part in zip(partial, (out, weights.sum(-1), peak), strict=True)
        )

    stats = (num_items, num_kv_heads, group)
    partial = (jnp.zeros((*stats, head_dim)), jnp.zeros(stats), jnp.full(stats, _MIN))
    out, total, peak = jax.lax.fori_loop(0, -(-last_item[-1] // per_turn), turn, partial)

    own = jnp.minimum(first_item[:, None] + jnp.arange(max_blocks), num_items - 1)
    is_own = (jnp.arange(max_blocks) < num_blocks[:, None])[..., None, None]
    peaks = jnp.where(is_own, peak[own], _MIN)
    peak = peaks.max(1)
    weights = jnp.where(is_own, jnp.exp(peaks - peak[:, None]), 0)
    total = (weights * total[own]).sum(1)
    out = (weights[..., None] * out[own]).sum(1)
    return finish(q, out, peak, total, sinks, return_lse)


paged_decode.time_grows_with_table = True  # pyright: ignore[reportFunctionMemberAccess]
paged_decode.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


def product_dtype(q: jax.Array, cache: jax.Array) -> jnp.dtype:
    """What keys and values are multiplied in: the cache's dtype, or the query's where the cache is of 8 bits."""
    return q.dtype if cache.dtype.itemsize == 1 else cache.dtype


def finish(
    q: jax.Array, out: jax.Array, peak: jax.Array, total: jax.Array, sinks: jax.Array | None, return_lse: bool
) -> Any:
    """The result of sums `out` (..., H) of weights exp(score - peak), which add up to `total` (...)."""
    some = jnp.where(total > 0, total, 1)
    out, lse = out / some[..., None], jnp.where(total > 0, peak + jnp.log(some), -jnp.inf)
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    out = out.astype(q.dtype)
    return (out, lse) if return_lse else out


def gather_tiles(cache: jax.Array, tile_ids: jax.Array) -> jax.Array:
    """Tiles `kv_head * N + page_id` of a (K, N, page, H) cache, each one contiguous: (num_ids, page * H).

    The barriers keep the gather a plain row copy: with a reshape or index arithmetic fused into it XLA CPU computes
    the index of every element, which took 2.4 times as long.
    """
    num_kv_heads, num_pages, page_size, head_dim = cache.shape
    tiles = cache.reshape(num_kv_heads * num_pages, page_size * head_dim)
    tile_ids = jax.lax.optimization_barrier(tile_ids.reshape(-1))
    gathered = tiles.at[tile_ids].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return jax.lax.optimization_barrier(gathered)
