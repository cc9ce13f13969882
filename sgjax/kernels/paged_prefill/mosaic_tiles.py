"""The list of tiles that Mosaic's `paged_prefill` works through, made on the device from the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Tile(NamedTuple):
    """Int32 each: what a program works on at a time."""

    sequence: Any
    """Row of the page table."""
    first_token: Any
    """In `q`."""
    num_tokens: Any
    """Of both warpgroups together; 0 past the last tile."""
    first_position: Any
    """Of the first token, in its sequence."""
    kv_len: Any
    end: Any
    """Blocks of keys up to the last that is seen. They are attended from there to the first."""
    num_blocks: Any
    """Blocks that are seen."""
    num_late: Any
    """Of them, those at the end that need a mask: the causal diagonal and the ragged end. At least 1."""
    num_early: Any
    """Of the others, those at the beginning that need one, since a window cuts them."""
    place: Any = None
    """Among the tiles."""
    head: Any = None
    """Of the grid: KV head, and group of its query heads."""


class TileList(NamedTuple):
    """A batch cut into tiles, those with the most work first.

    Attributes:
      tiles: int32 (B, fields of `Tile` up to `num_early`), as many as any batch of this size can need.
      places: int32 (B,): where in `tiles` the batch's b-th tile is.
      first: int32 (S + 2,): the first tile of the tokens before all rows, of each row, and of those after.
    """

    tiles: jax.Array
    places: jax.Array
    first: jax.Array


def make_tiles(
    kv_lens: jax.Array,
    q_starts: jax.Array,
    num_tokens: int,
    *,
    tile_tokens: int,
    block_keys: int,
    causal: bool = True,
    window: int | None = None,
) -> TileList:
    """Cuts a batch of `num_tokens` into tiles of `tile_tokens` at most, all of the same row.

    Tokens outside every row become rows of length 0, whose tiles get zeros.
    """
    zero = jnp.zeros(1, jnp.int32)
    starts = jnp.concatenate([zero, q_starts.astype(jnp.int32)])
    lens = jnp.concatenate([starts[1:], jnp.full(1, num_tokens, jnp.int32)]) - starts
    kv_lens = jnp.concatenate([zero, kv_lens.astype(jnp.int32), zero])
    counts = -(-lens // tile_tokens)
    ends = jnp.cumsum(counts)
    index = jnp.arange(num_tokens // tile_tokens + lens.shape[0], dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(ends <= index[:, None], axis=1, dtype=jnp.int32), lens.shape[0] - 1)
    token = (index - (ends - counts)[row]) * tile_tokens  # Within the row.
    kv_len, length = kv_lens[row], lens[row]
    used = jnp.clip(length - token, 0, tile_tokens)
    first_position = kv_len - length + token if causal else jnp.zeros_like(token)
    tile = Tile(
        jnp.clip(row - 1, 0, kv_lens.shape[0] - 3),
        starts[row] + token,
        used,
        first_position,
        kv_len,
        *_blocks_seen(used, first_position, kv_len, block_keys, causal, window),
    )
    # A sort by counting: it is small, and one fused loop. Tiles without tokens come last.
    work = jnp.where(used > 0, 1 + tile.num_blocks, 0)
    before = (work > work[:, None]) | ((work == work[:, None]) & (index < index[:, None]))
    places = jnp.sum(before, axis=1, dtype=jnp.int32)
    fields = jnp.stack(tile[:-2], axis=1)
    tiles = jnp.zeros_like(fields).at[places].set(fields, unique_indices=True)
    return TileList(tiles, places, ends - counts)


def _blocks_seen(
    num_tokens: jax.Array,
    first_position: jax.Array,
    kv_len: jax.Array,
    block_keys: int,
    causal: bool,
    window: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`end`, `num_blocks`, `num_late` and `num_early` of tiles."""
    # One past the last key that the first, and that any token sees.
    first_end = first_position + 1 if causal else kv_len
    last_end = first_position + num_tokens if causal else kv_len
    end = jnp.where((num_tokens == 0) | (kv_len == 0), 0, -(-last_end // block_keys))
    begin, first_whole = jnp.zeros_like(end), jnp.zeros_like(end)
    if window is not None:
        begin = jnp.minimum(jnp.maximum(first_end - window, 0) // block_keys, end)
        first_whole = -(-jnp.maximum(last_end - window, 0) // block_keys)
    last_whole = jnp.clip(first_end // block_keys, begin, end - 1)
    return end, end - begin, end - last_whole, jnp.clip(first_whole - begin, 0, last_whole - begin)


def lse_of_tokens(
    lse: jax.Array,
    tiles: TileList,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    shape: tuple[int, ...],
    tile_tokens: int,
) -> jax.Array:
    """Log-sum-exps in the order of tokens: `shape`, (T, K, G), of the tiles' (B, groups of heads, rows)."""
    token = jnp.arange(shape[0], dtype=jnp.int32)
    row = jnp.sum(q_starts <= token[:, None], axis=1, dtype=jnp.int32)  # 0 and S + 1 are outside all rows.
    begin = jnp.concatenate([jnp.zeros(1, jnp.int32), q_starts.astype(jnp.int32)])[row]
    tile, within = tiles.places[tiles.first[row] + (token - begin) // tile_tokens], (token - begin) % tile_tokens
    lse = lse.reshape(*lse.shape[:2], tile_tokens, -1)[tile, :, within]
    sees = jnp.concatenate([jnp.zeros(1, bool), kv_lens > 0, jnp.zeros(1, bool)])[row]
    return jnp.where(sees[:, None, None], lse.reshape(shape), -jnp.inf)
