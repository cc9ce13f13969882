"""The Hopper kernel behind `paged_decode.mosaic` and `paged_prefill.mosaic`: blocks of query rows over cache pages.

A query row is one query head of one token. Rows that share a sequence and a KV head are attended together, 64 at a
time, which is what one `wgmma` takes: scores = q @ k^T, an online softmax in float32, out += weights @ v. Keys and
values come in blocks of 64 positions, one TMA copy per page, double-buffered. Two programs fit on a multiprocessor and
hide each other's waits.
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

from sgjax.kernels.hopper import check_supported

BLOCK_ROWS = 64
_BLOCK_KEYS = 64
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

    Raises:
      NotImplementedError: names what the kernel cannot do.
    """
    check_supported(q=q, k_cache=k_cache, v_cache=v_cache)
    num_kv_heads, _, page_size, head_dim = k_cache.shape
    if page_size not in (16, 32, 64, 128):
        raise NotImplementedError(f"page_size is {page_size}, and this kernel takes 16, 32, 64 and 128")
    copies_per_block = 2 * max(1, _BLOCK_KEYS // page_size)
    scratch = _Scratch(
        q=_tiled_smem((BLOCK_ROWS, head_dim), q.dtype),
        k=_tiled_smem((_NUM_STAGES, _BLOCK_KEYS, head_dim), q.dtype),
        v=_tiled_smem((_NUM_STAGES, _BLOCK_KEYS, head_dim), q.dtype),
        weights=_tiled_smem((BLOCK_ROWS, _BLOCK_KEYS), q.dtype),
        rows=plgpu.SMEM((BLOCK_ROWS, head_dim), q.dtype),
        q_barrier=plgpu.Barrier(),
        kv_barriers=plgpu.Barrier(num_arrivals=copies_per_block, num_barriers=_NUM_STAGES),
    )
    kernel = plgpu.kernel(
        functools.partial(_attend_block, options=_Options(rows_per_token, rows_per_head, scale, window, soft_cap)),
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=scratch._asdict(),
        grid=(num_kv_heads, blocks.sequence.shape[0]),
        grid_names=("kv_head", "block"),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="paged_attention",
    )
    return kernel(q, k_cache, v_cache, page_table, *blocks)


class _Options(NamedTuple):
    rows_per_token: int
    rows_per_head: int
    scale: float
    window: int | None
    soft_cap: float | None


class _Scratch(NamedTuple):
    """A program's shared memory: types outside of the kernel, Refs inside."""

    q: Any
    k: Any
    v: Any
    weights: Any
    rows: Any
    q_barrier: Any
    kv_barriers: Any


def _tiled_smem(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that `wgmma` reads."""
    tiling = plgpu.TilingTransform((8, 64))  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(128)))  # type: ignore[abstract]


def _attend_block(q, k_cache, v_cache, page_table, /, *refs, options: _Options, **scratch) -> None:
    """One block of query rows of one KV head. `refs` are those of `QueryBlocks`, then the output."""
    *block_refs, out = refs
    smem = _Scratch(**scratch)
    kv_head = lax.axis_index("kv_head")
    block = QueryBlocks(*(ref[lax.axis_index("block")] for ref in block_refs))
    first_row = block.first_row + kv_head * options.rows_per_head
    begin, end = _key_blocks(block, options)

    def start_copies(index):
        """A block of keys and values. Past the last page that is read again, and masked."""
        page_size = k_cache.shape[2]
        copy_len = min(page_size, _BLOCK_KEYS)
        slot = lax.rem(index, _NUM_STAGES)
        for start in range(0, _BLOCK_KEYS, copy_len):
            position = index * _BLOCK_KEYS + start
            column = jnp.minimum(lax.div(position, page_size), lax.div(block.kv_len - 1, page_size))
            page_id = page_table[block.sequence, column]
            part = pl.ds(pl.multiple_of(lax.rem(position, page_size), copy_len), copy_len)
            for cache, buffer in ((k_cache, smem.k), (v_cache, smem.v)):
                rows = buffer.at[slot, pl.ds(start, copy_len)]
                plgpu.copy_gmem_to_smem(cache.at[kv_head, page_id, part], rows, smem.kv_barriers.at[slot])

    def step(index, carry):
        acc, max_score, total = carry
        slot = lax.rem(index, _NUM_STAGES)
        plgpu.barrier_wait(smem.kv_barriers.at[slot])
        scores = _scores(_multiply(smem.q, smem.k.at[slot].transpose((1, 0))), index, block, options)
        new_max = jnp.maximum(max_score, scores.max(axis=1))
        decay = jnp.exp2(max_score - new_max)
        weights = jnp.exp2(scores - lax.broadcast_in_dim(new_max, scores.shape, [0]))
        total = total * decay + weights.sum(axis=1)
        smem.weights[...] = weights.astype(smem.weights.dtype)
        pl.when((index + 1) * _BLOCK_KEYS > block.kv_len)(lambda: _zero_unwritten(smem.v, slot, index, block.kv_len))
        plgpu.commit_smem()
        fresh = _multiply(smem.weights, smem.v.at[slot])
        pl.when(index + _NUM_STAGES < end)(lambda: start_copies(index + _NUM_STAGES))
        return acc * lax.broadcast_in_dim(decay, acc.shape, [0]) + fresh, new_max, total

    @pl.when(block.num_rows > 0)
    def _():
        # Rows past the block's are other rows, or zeros past the array: nothing that is kept depends on them.
        # They go through `rows` because a copy into a tiled buffer must begin at a multiple of 8 rows.
        plgpu.copy_gmem_to_smem(q.at[pl.ds(first_row, BLOCK_ROWS)], smem.rows, smem.q_barrier)
        for i in range(_NUM_STAGES):
            pl.when(begin + i < end)(functools.partial(start_copies, begin + i))
        plgpu.barrier_wait(smem.q_barrier)
        smem.q[...] = plgpu.layout_cast(smem.rows[...], plgpu.Layout.WGMMA)
        plgpu.commit_smem()
        row_layout = plgpu.Layout.WGMMA.reduce(1)
        acc = plgpu.layout_cast(jnp.zeros(smem.rows.shape, jnp.float32), plgpu.Layout.WGMMA)
        max_score = plgpu.layout_cast(jnp.full((BLOCK_ROWS,), _MIN, jnp.float32), row_layout)
        total = plgpu.layout_cast(jnp.zeros((BLOCK_ROWS,), jnp.float32), row_layout)
        acc, _, total = lax.fori_loop(begin, end, step, (acc, max_score, total))
        norm = 1 / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # A row that saw no key gives zeros.
        smem.rows[...] = (acc * lax.broadcast_in_dim(norm, acc.shape, [0])).astype(smem.rows.dtype)
        plgpu.commit_smem()
        _store_rows(smem.rows, out, first_row, block.num_rows)


def _key_blocks(block: QueryBlocks, options: _Options) -> tuple[jax.Array, jax.Array]:
    """The range of blocks of keys that some row of the block sees."""
    last_position = block.first_position + lax.div(block.row_offset + block.num_rows - 1, options.rows_per_token)
    end = lax.div(last_position + _BLOCK_KEYS, _BLOCK_KEYS)
    if options.window is None:
        return jnp.int32(0), end
    return lax.div(jnp.maximum(block.first_position - options.window + 1, 0), _BLOCK_KEYS), end


def _multiply(a: Any, b: Any) -> jax.Array:
    """(64, K) Ref times (K, N) Ref, float32 (64, N)."""

    def multiply(acc_ref):
        plgpu.wgmma(acc_ref, a, b)
        return acc_ref[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), jnp.float32))


def _iota(shape: tuple[int, ...], dimension: int) -> jax.Array:
    return plgpu.broadcasted_iota(jnp.int32, shape, dimension, layout=plgpu.Layout.WGMMA)


def _scores(products: jax.Array, index: jax.Array, block: QueryBlocks, options: _Options) -> jax.Array:
    """Scaled, capped and masked, in units of log 2, so that exp2 of them gives the weights."""
    scale, soft_cap = options.scale, options.soft_cap
    if soft_cap is None:
        scores = products * (scale * _LOG2_E)
    else:
        # tanh through exp2, whose fast instruction is exact to 2^-22; that of tanh, to 2^-11, is too coarse.
        tanh = 1 - 2 / (1 + jnp.exp2(products * (2 * _LOG2_E * scale / soft_cap)))
        scores = tanh * (soft_cap * _LOG2_E)
    key_positions = _iota(scores.shape, 1) + index * scores.shape[1]
    tokens = lax.div(_iota(scores.shape, 0) + block.row_offset, options.rows_per_token)
    query_positions = tokens + block.first_position
    visible = key_positions <= query_positions
    if options.window is not None:
        visible &= key_positions > query_positions - options.window
    return jnp.where(visible, scores, -jnp.inf)


def _zero_unwritten(v_smem: Any, slot: jax.Array, index: jax.Array, kv_len: jax.Array) -> None:
    """Clears the values of slots that hold no token: they may be NaN, and 0 * NaN is NaN."""
    values = plgpu.layout_cast(v_smem[slot], plgpu.Layout.WGMMA)
    written = _iota(values.shape, 0) + index * values.shape[0] < kv_len
    v_smem[slot] = jnp.where(written, values, jnp.zeros_like(values))


def _store_rows(rows: Any, out: Any, first_row: jax.Array, num_rows: jax.Array) -> None:
    """Copies the first `num_rows` rows out: a TMA copy has a static size, so one copy per bit of the count."""
    done: Any = 0
    size = BLOCK_ROWS
    while size:
        part = num_rows & size

        @pl.when(part != 0)
        def _(done=done, size=size):
            plgpu.copy_smem_to_gmem(rows.at[pl.ds(done, size)], out.at[pl.ds(first_row + done, size)])

        done = done + part
        size //= 2
    plgpu.wait_smem_to_gmem(0)
