"""`paged_decode` in plain jnp, shaped by measurement on a CPU.

The rows' keys are cut into blocks, and the blocks of all rows form one flat list of equal items (flash-decoding's split
over keys), worked off a few at a time by a loop that ends when the batch's real blocks are done. So padding of S and P
costs nothing, rows of unequal length leave no idle work, and what a turn gathers stays in the cores' caches. Partial
results are joined at the end by their softmax statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    (num_rows, max_pages), page_size = page_table.shape, k_cache.shape[2]
    block_pages = max(1, min(_BLOCK_TOKENS // page_size, max_pages))
    table = jnp.pad(page_table, ((0, 0), (0, -max_pages % block_pages))).reshape(num_rows, -1, block_pages)
    items = _cut(table, kv_lens, block_pages * page_size, window)
    num_items, per_turn = len(items.row), min(_ITEMS_PER_TURN, len(items.row))
    queries = q.astype(product_dtype(q, k_cache))[items.row]

    def turn(i, partial):
        def mine(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * per_turn, per_turn)

        page_ids, start, stop = mine(items.page_ids), mine(items.start), mine(items.stop)
        parts = _attend(mine(queries), k_cache, v_cache, page_ids, start, stop, scale, soft_cap)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part.reshape(per_turn, *whole.shape[1:]), i * per_turn, 0)
            for whole, part in zip(partial, parts, strict=True)
        )

    stats = (num_items, *q.shape[1:3])
    partial = (jnp.zeros((*stats, q.shape[3])), jnp.zeros(stats), jnp.full(stats, _MIN))
    num_turns = -(-(items.first[-1] + items.counts[-1]) // per_turn)
    out, total, peak = jax.lax.fori_loop(0, num_turns, turn, partial)

    number = jnp.arange(table.shape[1])
    own = jnp.minimum(items.first[:, None] + number, num_items - 1)
    is_own = (number < items.counts[:, None])[..., None, None]
    peaks = jnp.where(is_own, peak[own], _MIN)
    peak = peaks.max(1)
    weights = jnp.where(is_own, jnp.exp(peaks - peak[:, None]), 0)
    total = (weights * total[own]).sum(1)
    out = (weights[..., None] * out[own]).sum(1)
    return finish(q, out, peak, total, sinks, return_lse)


paged_decode.time_grows_with_table = True  # pyright: ignore[reportFunctionMemberAccess]
paged_decode.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


class _Items(NamedTuple):
    """The rows' keys in blocks, row after row; those past the last row's see nothing.

    Attributes:
      row: (I,). page_ids: (I, pages).
      start, stop: (I,): the keys that are seen, within the block.
      first, counts: (S,): row s owns the items from first[s] on, counts[s] of them.
    """

    row: jax.Array
    page_ids: jax.Array
    start: jax.Array
    stop: jax.Array
    first: jax.Array
    counts: jax.Array


def _cut(table: jax.Array, kv_lens: jax.Array, block_tokens: int, window: int | None) -> _Items:
    """Items for a page table in blocks, (S, blocks, pages): a multiple of what a turn takes."""
    num_rows, max_blocks, block_pages = table.shape
    per_turn = min(_ITEMS_PER_TURN, num_rows * max_blocks)
    num_items = -(-num_rows * max_blocks // per_turn) * per_turn
    first_visible = jnp.zeros_like(kv_lens) if window is None else jnp.maximum(kv_lens - window, 0)
    first_block = first_visible // block_tokens
    counts = -(-kv_lens // block_tokens) - first_block
    ends = jnp.cumsum(counts)
    first = ends - counts
    items = jnp.arange(num_items)
    row = jnp.minimum(jnp.searchsorted(ends, items, side="right", method="compare_all"), num_rows - 1)
    block = jnp.clip(items - first[row] + first_block[row], 0, max_blocks - 1)
    page_ids = table.reshape(num_rows * max_blocks, block_pages)[row * max_blocks + block]
    start = jnp.where(items < ends[-1], first_visible[row] - block * block_tokens, 0)
    stop = jnp.where(items < ends[-1], kv_lens[row] - block * block_tokens, 0)
    return _Items(row, page_ids, start, stop, first, counts)


def _attend(
    queries: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_ids: jax.Array,
    start: jax.Array,
    stop: jax.Array,
    scale: float,
    soft_cap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of a few items, (i, K, G, H) queries, over their blocks of keys.

    Returns:
      (i * K, G, ...): sums of values, sums of weights, and the largest scores, to which the weights are relative.
    """
    (num_kv_heads, num_pages, page_size, head_dim), block_pages = k_cache.shape, page_ids.shape[1]
    queries = queries.reshape(-1, *queries.shape[2:])
    tile_ids = page_ids[:, None] + jnp.arange(num_kv_heads)[:, None] * num_pages
    shape = (len(queries), block_pages * page_size, head_dim)
    tiles = (gather_tiles(cache, tile_ids) for cache in (k_cache, v_cache))
    keys, values = (tile.reshape(shape).astype(queries.dtype) for tile in tiles)
    offsets = jnp.arange(shape[1])
    visible = (offsets >= start[:, None]) & (offsets < stop[:, None])
    visible = jnp.repeat(visible, num_kv_heads, axis=0)

    scores = scale * jnp.einsum("igh,ich->igc", queries, keys, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(visible[:, None], scores, _MIN)
    peak = scores.max(-1)
    weights = jnp.where(visible[:, None], jnp.exp(scores - peak[..., None]), 0)
    values = jnp.where(visible[..., None], values, 0)  # 0 * NaN is NaN.
    out = jnp.einsum("igc,ich->igh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out, weights.sum(-1), peak


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
