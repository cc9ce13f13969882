"""`paged_prefill` in plain jnp, shaped by measurement on a CPU.

The rows' queries are cut into blocks, a few of which at a time go over blocks of their rows' keys with an online
softmax. Both loops end where the batch's real work does, so that padding of T, S and P costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    (num_rows, max_pages), page_size = page_table.shape, k_cache.shape[2]
    blocks = _cut(q, kv_lens, q_starts, product_dtype(q, k_cache), causal)
    max_blocks, query_block = blocks.positions.shape
    per_turn = min(_BLOCKS_PER_TURN, max_blocks)
    block_pages = max(1, min(_KEY_BLOCK // page_size, max_pages))
    table = jnp.pad(page_table, ((0, 0), (0, -max_pages % block_pages))).reshape(num_rows, -1, block_pages)

    def turn(i, results):
        def mine(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * per_turn, per_turn)

        rows, positions, queries = mine(blocks.row), mine(blocks.positions), mine(blocks.queries)
        acc, peak, total = _attend(
            queries, positions, k_cache, v_cache, table[rows], kv_lens[rows], scale, window, soft_cap
        )
        acc, peak, total = (x.reshape(per_turn, *q.shape[1:3], query_block, *x.shape[2:]) for x in (acc, peak, total))
        result = finish(q, acc, peak, total, None if sinks is None else sinks[..., None], return_lse=True)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, jnp.moveaxis(part, 3, 1), i * per_turn, 0)
            for whole, part in zip(results, result, strict=True)
        )

    results = (
        jnp.zeros((max_blocks, query_block, *q.shape[1:]), q.dtype),
        jnp.zeros((max_blocks, query_block, *q.shape[1:3])),
    )
    outs, lses = jax.lax.fori_loop(0, -(-blocks.ends[-1] // per_turn), turn, results)
    out = _of_tokens(outs, blocks, q_starts, q.shape, 0)
    return (out, _of_tokens(lses, blocks, q_starts, q.shape[:3], -jnp.inf)) if return_lse else out


paged_prefill.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


class _Blocks(NamedTuple):
    """The batch's queries in blocks, each of one row.

    Attributes:
      row: (B,).
      positions: (B, tokens) in their sequences; -1 past the row's end, where a query sees no key.
      queries: (B, K, G * tokens, H).
      begins, ends: (S,): row s owns the blocks [begins[s], ends[s]).
    """

    row: jax.Array
    positions: jax.Array
    queries: jax.Array
    begins: jax.Array
    ends: jax.Array


def _cut(q: jax.Array, kv_lens: jax.Array, q_starts: jax.Array, dtype: jnp.dtype, causal: bool) -> _Blocks:
    (num_tokens, num_kv_heads, group, head_dim), num_rows = q.shape, len(kv_lens)
    query_block = 64 if num_tokens >= 64 * num_rows else 32
    max_blocks = (num_tokens + num_rows * (query_block - 1)) // query_block
    per_turn = min(_BLOCKS_PER_TURN, max_blocks)
    max_blocks = -(-max_blocks // per_turn) * per_turn
    counts = -(-(q_starts[1:] - q_starts[:-1]) // query_block)
    ends = jnp.cumsum(counts)
    begins = ends - counts
    row = _segment(ends, max_blocks)
    first_token = q_starts[row] + (jnp.arange(max_blocks) - begins[row]) * query_block
    tokens = first_token[:, None] + jnp.arange(query_block)
    positions = tokens + (kv_lens - q_starts[1:])[row][:, None] if causal else (kv_lens - 1)[row][:, None]
    positions = jnp.where(tokens < q_starts[1:][row][:, None], positions, -1)
    queries = jnp.take(q.astype(dtype), tokens.reshape(-1), axis=0, mode="clip")
    queries = queries.reshape(max_blocks, query_block, num_kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4).reshape(max_blocks, num_kv_heads, group * query_block, head_dim)
    return _Blocks(row, positions, queries, begins, ends)


def _attend(
    queries: jax.Array,
    positions: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    table: jax.Array,
    kv_lens: jax.Array,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of a few blocks of queries, in an online softmax over blocks of keys.

    Args:
      queries, positions: as in `_Blocks`. table: (b, blocks of keys, pages) and kv_lens: (b,), of their rows.

    Returns:
      What `finish` takes, (b * K, G * tokens, ...): sums, the largest scores, sums of weights.
    """
    (num_kv_heads, num_pages, page_size, head_dim), num_blocks = k_cache.shape, len(queries)
    key_block = table.shape[2] * page_size
    queries = queries.reshape(-1, *queries.shape[2:])
    stats = queries.shape[:2]
    group = stats[1] // positions.shape[1]

    def turn(j, carry):
        acc, peak, total = carry
        tile_ids = jnp.arange(num_kv_heads)[:, None] * num_pages + table[:, j][:, None]
        tiles = (gather_tiles(cache, tile_ids) for cache in (k_cache, v_cache))
        keys, values = (tile.reshape(stats[0], key_block, head_dim).astype(queries.dtype) for tile in tiles)
        key_positions = j * key_block + jnp.arange(key_block)
        visible = key_positions <= positions[..., None]
        if window is not None:
            visible &= key_positions > positions[..., None] - window
        shape = (num_blocks, num_kv_heads, group, *visible.shape[1:])
        visible = jnp.broadcast_to(visible[:, None, None], shape).reshape(*stats, key_block)

        scores = scale * jnp.einsum("bqh,bch->bqc", queries, keys, preferred_element_type=jnp.float32)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(visible, scores, _MIN)
        new_peak = jnp.maximum(peak, scores.max(-1))
        weights = jnp.exp(scores - new_peak[..., None])
        decay = jnp.exp(peak - new_peak)
        written = jnp.repeat(key_positions < kv_lens[:, None], num_kv_heads, axis=0)
        values = jnp.where(written[..., None], values, 0)  # 0 * NaN is NaN.
        new = jnp.einsum("bqc,bch->bqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return acc * decay[..., None] + new, new_peak, total * decay + weights.sum(-1)

    begin = 0 if window is None else jnp.maximum(_first_visible(positions, window), 0) // key_block
    end = -(-(positions.max() + 1) // key_block)
    # The peak starts above `_MIN`, so that what is not visible weighs exp(_MIN - peak), exactly 0.
    start = (jnp.zeros((*stats, head_dim)), jnp.full(stats, _MIN / 2), jnp.zeros(stats))
    return jax.lax.fori_loop(begin, end, turn, start)


def _of_tokens(x: jax.Array, blocks: _Blocks, q_starts: jax.Array, shape: tuple[int, ...], outside: float) -> jax.Array:
    """Results (B, tokens, ...) as `shape`, (T, ...); `outside` for tokens that no row has."""
    num_tokens, query_block = shape[0], x.shape[1]
    row = _segment(q_starts[1:], num_tokens)
    source = blocks.begins[row] * query_block + jnp.arange(num_tokens) - q_starts[row]
    in_row = (jnp.arange(num_tokens) >= q_starts[0]) & (jnp.arange(num_tokens) < q_starts[-1])
    found = jnp.take(x.reshape(len(x) * query_block, -1), source, axis=0, mode="clip")
    return jnp.where(in_row[:, None], found, outside).reshape(shape)


def _segment(ends: jax.Array, size: int) -> jax.Array:
    """Which segment each of `size` consecutive items is in, given where each ends; the last one for what is past it."""
    index = jnp.searchsorted(ends, jnp.arange(size), side="right", method="compare_all")
    return jnp.minimum(index, ends.size - 1)


def _first_visible(positions: jax.Array, window: int) -> jax.Array:
    """The first key that any query (a position of at least 0) sees."""
    return jnp.where(positions >= 0, positions, jnp.iinfo(jnp.int32).max).min() - window + 1
