"""The Hopper kernel behind `paged_decode.mosaic` and `paged_prefill.mosaic`: blocks of query rows over cache pages.

A query row is one query head of one token. Rows that share a sequence and a KV head are attended together, 64 at a
time, which is what one `wgmma` takes: scores = q @ k^T, an online softmax in float32, out += p @ v. Keys and values
come in blocks of whole pages, one TMA copy per page, double-buffered.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK_ROWS = 64
_MIN_BLOCK_KEYS = 64
_NUM_STAGES = 2
_LOG2_E = math.log2(math.e)
_MIN = -1e30  # Finite, so that a row which has seen no key yet gives exp(-inf - _MIN) = 0 and not NaN.


class QueryBlocks(NamedTuple):
    """Int32 (B,) each: the work of one program per KV head."""

    sequence: jax.Array
    """Row of the page table."""
    kv_len: jax.Array
    """Tokens of the sequence in the cache."""
    first_row: jax.Array
    """Where the block's rows begin in `q`, for KV head 0."""
    num_rows: jax.Array
    """Rows of the block; 0 leaves the output as it is."""
    first_position: jax.Array
    """Position in the sequence of the block's row 0, rows being counted from a token's first head."""
    row_offset: jax.Array
    """Heads of the first token that belong to an earlier block."""


def check_supported(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array) -> None:
    """Raises `NotImplementedError` that names what the kernel cannot do."""
    page_size, head_dim = k_cache.shape[2:]
    for name, array in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        if array.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {array.dtype}, and this kernel takes bfloat16 alone")
    if head_dim not in (64, 128):
        raise NotImplementedError(f"head_dim is {head_dim}, and this kernel takes 64 and 128")
    if page_size not in (16, 32, 64, 128):
        raise NotImplementedError(f"page_size is {page_size}, and this kernel takes 16, 32, 64 and 128")


def attend(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    blocks: QueryBlocks,
    *,
    rows_per_token: int,
    rows_per_head: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """Attention of all query rows.

    Args:
      q: (R, H). KV head k's rows of a block begin at `first_row + k * rows_per_head`; `rows_per_token` consecutive
        rows stand at the same position.
      k_cache, v_cache: (K, N, page, H). page_table: int32 (S, P).

    Returns:
      (R, H); rows of no block are uninitialised.
    """
    num_kv_heads, _, page_size, head_dim = k_cache.shape
    block_keys = max(_MIN_BLOCK_KEYS, page_size)
    tiled = functools.partial(_tiled_smem, dtype=q.dtype)
    body = functools.partial(
        _attend_block,
        rows_per_token=rows_per_token,
        rows_per_head=rows_per_head,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
    )
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types={
            "q_smem": tiled((BLOCK_ROWS, head_dim)),
            "k_smem": tiled((_NUM_STAGES, block_keys, head_dim)),
            "v_smem": tiled((_NUM_STAGES, block_keys, head_dim)),
            "p_smem": tiled((BLOCK_ROWS, block_keys)),
            "row_smem": plgpu.SMEM((BLOCK_ROWS, head_dim), q.dtype),
            "q_barrier": plgpu.Barrier(),
            "kv_barriers": plgpu.Barrier(num_arrivals=2 * (block_keys // page_size), num_barriers=_NUM_STAGES),
        },
        grid=(num_kv_heads, blocks.sequence.shape[0]),
        grid_names=("kv_head", "block"),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="paged_attention",
    )
    return kernel(q, k_cache, v_cache, page_table, *blocks)


def _tiled_smem(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that `wgmma` reads."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def _attend_block(
    q,
    k_cache,
    v_cache,
    page_table,
    sequences,
    kv_lens,
    first_rows,
    row_counts,
    first_positions,
    row_offsets,
    out,
    *,
    q_smem,
    k_smem,
    v_smem,
    p_smem,
    row_smem,
    q_barrier,
    kv_barriers,
    rows_per_token: int,
    rows_per_head: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
):
    """One block of query rows of one KV head."""
    kv_head, block = lax.axis_index("kv_head"), lax.axis_index("block")
    page_size = k_cache.shape[2]
    num_stages, block_keys, head_dim = k_smem.shape
    pages_per_block = block_keys // page_size
    sequence, kv_len, num_rows = sequences[block], kv_lens[block], row_counts[block]
    row_offset, first_position = row_offsets[block], first_positions[block]
    first_row = first_rows[block] + kv_head * rows_per_head
    last_page = lax.div(jnp.maximum(kv_len, 1) - 1, page_size)

    def start_copies(index, slot):
        """Keys and values of a block of pages. Past the last page it is read again, and masked."""
        for i in range(pages_per_block):
            page_id = page_table[sequence, jnp.minimum(index * pages_per_block + i, last_page)]
            rows = pl.ds(i * page_size, page_size)
            plgpu.copy_gmem_to_smem(k_cache.at[kv_head, page_id], k_smem.at[slot, rows], kv_barriers.at[slot])
            plgpu.copy_gmem_to_smem(v_cache.at[kv_head, page_id], v_smem.at[slot, rows], kv_barriers.at[slot])

    def iota(shape, dimension):
        return plgpu.broadcasted_iota(jnp.int32, shape, dimension, layout=plgpu.Layout.WGMMA)

    def step(index, carry):
        acc, max_score, total = carry
        slot = lax.rem(index, num_stages)
        plgpu.barrier_wait(kv_barriers.at[slot])

        def multiply_keys(scores_ref):
            plgpu.wgmma(scores_ref, q_smem, k_smem.at[slot].transpose((1, 0)))
            return scores_ref[...]

        scores = pl.run_scoped(multiply_keys, plgpu.ACC((BLOCK_ROWS, block_keys), jnp.float32))
        if soft_cap is None:
            scores *= scale * _LOG2_E
        else:
            scores = _tanh(scores * (scale / soft_cap)) * (soft_cap * _LOG2_E)
        key_positions = iota(scores.shape, 1) + index * block_keys
        query_positions = lax.div(iota(scores.shape, 0) + row_offset, rows_per_token) + first_position
        visible = key_positions <= query_positions
        if window is not None:
            visible &= key_positions > query_positions - window
        scores = jnp.where(visible, scores, -jnp.inf)

        new_max = jnp.maximum(max_score, scores.max(axis=1))
        decay = jnp.exp2(max_score - new_max)
        weights = jnp.exp2(scores - lax.broadcast_in_dim(new_max, scores.shape, [0]))
        total = total * decay + weights.sum(axis=1)
        p_smem[...] = weights.astype(p_smem.dtype)

        @pl.when((index + 1) * block_keys > kv_len)
        def _():  # Slots that hold no token may be NaN, and 0 * NaN is NaN.
            values = plgpu.load(v_smem.at[slot], (), layout=plgpu.Layout.WGMMA)
            written = iota(values.shape, 0) + index * block_keys < kv_len
            v_smem[slot] = jnp.where(written, values, jnp.zeros_like(values))

        plgpu.commit_smem()

        def multiply_values(out_ref):
            plgpu.wgmma(out_ref, p_smem, v_smem.at[slot])
            return out_ref[...]

        fresh = pl.run_scoped(multiply_values, plgpu.ACC((BLOCK_ROWS, head_dim), jnp.float32))
        acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0]) + fresh

        @pl.when(index + num_stages < end)
        def _():
            start_copies(index + num_stages, slot)

        return acc, new_max, total

    last_position = first_position + lax.div(row_offset + num_rows - 1, rows_per_token)
    begin = 0 if window is None else lax.div(jnp.maximum(first_position - window + 1, 0), block_keys)
    begin = jnp.int32(begin)
    end = lax.div(last_position, block_keys) + 1

    @pl.when(num_rows > 0)
    def _():
        # Rows past the block's are other rows, or zeros past the array: nothing that is kept depends on them.
        # They go through row_smem because a copy into a tiled buffer must begin at a multiple of 8 rows.
        plgpu.copy_gmem_to_smem(q.at[pl.ds(first_row, BLOCK_ROWS)], row_smem, q_barrier)
        for i in range(num_stages):

            @pl.when(begin + i < end)
            def _(i=i):
                start_copies(begin + i, lax.rem(begin + i, num_stages))

        plgpu.barrier_wait(q_barrier)
        q_smem[...] = plgpu.load(row_smem, (), layout=plgpu.Layout.WGMMA)
        plgpu.commit_smem()
        row_layout = plgpu.Layout.WGMMA.reduce(1)
        carry = (
            plgpu.layout_cast(jnp.zeros((BLOCK_ROWS, head_dim), jnp.float32), plgpu.Layout.WGMMA),
            plgpu.layout_cast(jnp.full((BLOCK_ROWS,), _MIN, jnp.float32), row_layout),
            plgpu.layout_cast(jnp.zeros((BLOCK_ROWS,), jnp.float32), row_layout),
        )
        acc, _, total = lax.fori_loop(begin, end, step, carry)
        row_smem[...] = (acc / lax.broadcast_in_dim(total, acc.shape, [0])).astype(row_smem.dtype)
        plgpu.commit_smem()
        _store_rows(row_smem, out, first_row, num_rows)


def _tanh(x: jax.Array) -> jax.Array:
    """Through exp2, whose fast instruction is exact to 2^-22; that of tanh is to 2^-11, too coarse for scores."""
    return 1 - 2 / (1 + jnp.exp2(x * (2 * _LOG2_E)))


def _store_rows(row_smem, out, first_row, num_rows) -> None:
    """Copies the first `num_rows` rows out: a TMA copy has a static size, so one copy per bit of the count."""
    done = 0
    size = BLOCK_ROWS
    while size:
        part = num_rows & size

        @pl.when(part != 0)
        def _(done=done, size=size):
            plgpu.copy_smem_to_gmem(row_smem.at[pl.ds(done, size)], out.at[pl.ds(first_row + done, size)])

        done = done + part
        size //= 2
    plgpu.wait_smem_to_gmem(0)
