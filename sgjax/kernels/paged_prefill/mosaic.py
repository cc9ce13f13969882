"""`paged_prefill` for Hopper GPUs: blocks of query rows, each of one sequence, made from the ragged batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sgjax.kernels.mosaic_attention import BLOCK_ROWS, QueryBlocks, attend


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
    """See `api.PagedPrefill`. Raises `NotImplementedError` for what the kernel does not do."""
    num_tokens, num_kv_heads, group, head_dim = q.shape
    out = attend(
        q.swapaxes(0, 1).reshape(-1, head_dim),
        k_cache,
        v_cache,
        page_table,
        _query_blocks(kv_lens, q_starts, num_tokens, group),
        rows_per_token=group,
        rows_per_head=num_tokens * group,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
    )
    out = out.reshape(num_kv_heads, num_tokens, group, head_dim).swapaxes(0, 1)
    tokens = jnp.arange(num_tokens)
    in_row = (tokens >= q_starts[0]) & (tokens < q_starts[-1])
    return jnp.where(in_row[:, None, None, None], out, 0)


def _query_blocks(kv_lens: jax.Array, q_starts: jax.Array, num_tokens: int, group: int) -> QueryBlocks:
    """The rows' queries cut into blocks; as many blocks as any batch of this size can need, the rest without rows."""
    num_sequences = kv_lens.shape[0]
    max_blocks = num_tokens * group // BLOCK_ROWS + num_sequences
    rows_per_sequence = (q_starts[1:] - q_starts[:-1]) * group
    ends = jnp.cumsum(-(-rows_per_sequence // BLOCK_ROWS))
    block = jnp.arange(max_blocks, dtype=jnp.int32)
    sequence = jnp.minimum(jnp.sum(ends <= block[:, None], axis=1), num_sequences - 1)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])[sequence]
    row = (block - starts) * BLOCK_ROWS  # Within the sequence's queries.
    first_query_position = kv_lens - (q_starts[1:] - q_starts[:-1])
    return QueryBlocks(
        sequence=sequence,
        kv_len=kv_lens[sequence],
        first_row=q_starts[sequence] * group + row,
        num_rows=jnp.clip(rows_per_sequence[sequence] - row, 0, BLOCK_ROWS),
        first_position=first_query_position[sequence] + row // group,
        row_offset=row % group,
    )
