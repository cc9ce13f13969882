"""Split-KV for Mosaic's `paged_prefill`: few queries that see all keys are given parts of them, to fill the GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sgjax.kernels.lse import add_sinks, merge_parts
from sgjax.kernels.paged_prefill.mosaic_plan import Plan


def choose_num_splits(num_tokens: int, max_pages: int, plan: Plan, num_programs: int, most: int) -> int:
    """Parts to cut the keys into, so that tiles of queries that see all keys keep the programs busy."""
    if plan.causal:
        return 1
    num_tiles = pl.cdiv(num_tokens, plan.tile_tokens) * plan.heads_of_grid
    most_blocks = pl.cdiv(max_pages * plan.page_size, plan.block_keys)
    return max(1, min(most, num_programs // num_tiles, most_blocks // 4))


def cut(
    q: jax.Array, page_table: jax.Array, kv_lens: jax.Array, q_starts: jax.Array, *, page_size: int, num_splits: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The same operands of a call in which each part of a row's keys is a row of its own, with all of its queries."""
    num_tokens, (num_rows, max_pages) = q.shape[0], page_table.shape
    part_pages = -(-kv_lens // (page_size * num_splits))
    columns = jnp.arange(num_splits)[:, None] * part_pages
    part_lens = jnp.clip(kv_lens - columns * page_size, 0, part_pages * page_size)
    columns = columns[..., None] + jnp.arange(pl.cdiv(max_pages, num_splits))
    tables = page_table[jnp.arange(num_rows)[:, None], jnp.minimum(columns, max_pages - 1)]
    # A row without keys after each part's takes the tokens up to the next part's first row.
    tables = jnp.pad(tables, ((0, 0), (0, 1), (0, 0))).reshape(num_splits * (num_rows + 1), -1)
    part_lens = jnp.pad(part_lens, ((0, 0), (0, 1))).reshape(-1)
    starts = (q_starts + jnp.arange(num_splits)[:, None] * num_tokens).reshape(-1)
    return jnp.tile(q, (num_splits, 1, 1, 1)), tables, part_lens, jnp.append(starts, num_splits * num_tokens)


def join(outs: jax.Array, lses: jax.Array, sinks: jax.Array | None, *, num_splits: int) -> tuple[jax.Array, jax.Array]:
    """Attention of whole rows, of that call's results; `sinks` count once."""
    parts = (num_splits, outs.shape[0] // num_splits)
    out, lse = merge_parts(outs.reshape(*parts, *outs.shape[1:]), lses.reshape(*parts, *lses.shape[1:]))
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    return out.astype(outs.dtype), lse
