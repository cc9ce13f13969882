"""`paged_decode` for Hopper GPUs: the keys of all rows cut into equal shares, one per resident program.

The unit of work is a block of keys of one KV head. The units of a batch form one line, row after row and head after
head, and every program takes an equal stretch of it, so that rows of any lengths balance and one long row fills the GPU
(stream-K's partition, applied to flash-decoding). Where a stretch crosses from one head to the next a *piece* ends:
its output and the logarithm of its weights' sum go to a slot, and a second kernel merges each head's slots.

In a program one warpgroup copies pages into a ring of blocks, across the borders of pieces, and the other computes.
Keys are the M side of `wgmma` and the packed query heads are N, so that 4 heads are padded to 8 and not to 64:
scores = k @ q^T, out^T += v^T @ weights. `docs/adr/0008-keys-on-the-m-side.md` has the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from sgjax.kernels.hopper import (
    LOG2_E,
    MIN_SCORE,
    SHARED_MEMORY_BYTES,
    capped_scores,
    check_attention,
    num_multiprocessors,
    sink_scores,
    swizzle_bytes,
    swizzled_smem,
)

_MERGE_REGISTERS = 64  # A thread's share of the slots that a merge loads at a time.
_FLOAT16_MAX = 65504.0


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes to be measured; the results do not depend on them but for the order of sums.

    Attributes:
      block_keys: keys of a unit of work, a multiple of 64. None: 64, or 128 where they are of no more bytes.
      max_stages: blocks in the ring; fewer where shared memory does not hold them.
      programs_per_multiprocessor: at most this many; one where two stages do not fit otherwise.
      multiprocessors: None: the GPU's.
      min_split_keys: no program takes fewer keys, so that a short batch has fewer slots to merge.
    """

    block_keys: int | None = None
    max_stages: int = 6
    programs_per_multiprocessor: int = 2
    multiprocessors: int | None = None
    min_split_keys: int = 64


class Work(NamedTuple):
    """Who does what, a function of the lengths alone: XLA computes it once for all layers that share a window."""

    unit_starts: Any
    """int32 (S + 1,): where row s's units begin."""
    first_rows: Any
    """int32 (programs,): the row of each program's first unit."""


class _Piece(NamedTuple):
    """What one program does of one item of one row."""

    row: Any
    item: Any
    """Of the row: the KV head, or a part of its query heads."""
    slot: Any
    kv_len: Any
    begin: Any
    """First block of keys."""
    end: Any


class _Plan(NamedTuple):
    """Everything static."""

    scale: float
    window: int | None
    soft_cap: float | None
    heads: int
    """Query heads of an item, padded to a multiple of 8."""
    items_per_kv_head: int
    block_keys: int
    num_stages: int
    num_programs: int
    min_share: int
    compute_dtype: Any


class _Smem(NamedTuple):
    """A program's shared memory: types outside of the kernel, Refs inside."""

    q: Any
    k: Any
    v: Any
    weights: Any
    k_wide: Any
    """The block in the dtype that is multiplied, where the cache's is narrower; else None."""
    v_wide: Any
    q_full: Any
    q_free: Any
    k_full: Any
    k_free: Any
    v_full: Any
    v_free: Any


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
    tuning: Tuning = Tuning(),
) -> Any:
    """See `api.PagedDecode`. Raises `NotImplementedError` for what the kernel does not do."""
    num_rows, num_kv_heads, group, head_dim = q.shape
    check_attention(q, k_cache, v_cache)
    plan = _make_plan(q, k_cache, scale, window, soft_cap, tuning)
    items_per_row = num_kv_heads * plan.items_per_kv_head
    heads = group // plan.items_per_kv_head
    pad = plan.heads - heads

    queries = q.reshape(num_rows * items_per_row, heads, head_dim)
    if plan.compute_dtype == jnp.float16:
        queries = jnp.clip(queries, -_FLOAT16_MAX, _FLOAT16_MAX).astype(jnp.float16)
    queries = jnp.pad(queries, ((0, 0), (0, pad), (0, 0)))
    work = _share_out(kv_lens, items_per_row, plan)
    slots, slots_lse = _attend(queries, k_cache, v_cache, page_table, kv_lens, work, plan)
    if sinks is not None:
        sinks = jnp.pad(sinks.reshape(items_per_row, heads), ((0, 0), (0, pad)))
    # Copying a part of the padded heads out defeats the layout inference of jax 0.11 where the tiles of H overlap.
    out_heads = heads if len(_tiles(head_dim)) == 1 else plan.heads
    shape = jax.ShapeDtypeStruct((num_rows * items_per_row, out_heads, head_dim), q.dtype)
    out, lse = _merge(slots, slots_lse, sinks, work, shape, items_per_row, plan)
    out = out[:, :heads].reshape(q.shape)
    return (out, lse[:, :heads].reshape(num_rows, num_kv_heads, group)) if return_lse else out


paged_decode.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


def _max_heads(head_dim: int) -> int:
    """Query heads that an item may have, by the registers that its sums take; groups of more are several items."""
    return 64 if head_dim <= 128 else 32


def _make_plan(
    q: jax.Array, k_cache: jax.Array, scale: float, window: int | None, soft_cap: float | None, tuning: Tuning
) -> _Plan:
    _, _, group, head_dim = q.shape
    most_heads = _max_heads(head_dim)
    items_per_kv_head = pl.cdiv(group, most_heads)
    if group % items_per_kv_head:
        raise NotImplementedError(
            f"{group} query heads per KV head, and this kernel takes up to {most_heads}, or more in equal parts of "
            "that size"
        )
    heads = pl.cdiv(group // items_per_kv_head, 8) * 8
    small = head_dim == 64 and heads == 8
    keys = tuning.block_keys or (128 if small else 64)
    if keys % 64:
        raise ValueError(f"block_keys is {keys}, and must be a multiple of 64")
    is_wide = k_cache.dtype != q.dtype
    # Queries, weights, the block converted, reduction scratch and barriers.
    fixed = 2 * heads * head_dim * 2 + heads * keys * 2 + 2 * keys * head_dim * 2 * is_wide + 4096
    stage = 2 * keys * head_dim * k_cache.dtype.itemsize

    def num_stages(programs: int) -> int:
        return min(tuning.max_stages, (SHARED_MEMORY_BYTES // programs - 1024 - fixed) // stage)

    # Two programs' registers fit when a thread needs no more than 128, which it does with sums of more than these.
    most = tuning.programs_per_multiprocessor if heads * keys <= 1024 else 1
    programs = next((n for n in range(most, 1, -1) if num_stages(n) >= 2), 1)
    if num_stages(programs) < 1:
        raise NotImplementedError(f"shared memory does not hold one block of {keys} keys")
    return _Plan(
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        heads=heads,
        items_per_kv_head=items_per_kv_head,
        block_keys=keys,
        num_stages=num_stages(programs),
        num_programs=programs * (tuning.multiprocessors or num_multiprocessors()),
        min_share=pl.cdiv(tuning.min_split_keys, keys),
        # Every e4m3 number is a float16, and one instruction converts two of them; to bfloat16 it takes several.
        compute_dtype=jnp.dtype(jnp.float16) if is_wide else q.dtype,
    )


def _first_visible(kv_len: Any, plan: _Plan) -> Any:
    return jnp.zeros_like(kv_len) if plan.window is None else jnp.maximum(kv_len - plan.window, 0)


def _share_out(kv_lens: jax.Array, items_per_row: int, plan: _Plan) -> Work:
    """Equal shares of the batch's units."""
    blocks = pl.cdiv(kv_lens, plan.block_keys) - _first_visible(kv_lens, plan) // plan.block_keys
    rows = jnp.arange(len(kv_lens) + 1)
    # A cumulative sum, in one kernel; of `jnp.cumsum` XLA makes several.
    before = jnp.where(rows[:-1] < rows[:, None], blocks * items_per_row, 0)
    unit_starts = jnp.sum(before, axis=1, dtype=jnp.int32)
    first_units = jnp.arange(plan.num_programs, dtype=jnp.int32) * _share(unit_starts[-1], plan)
    return Work(unit_starts, jnp.sum(unit_starts[1:] <= first_units[:, None], axis=1, dtype=jnp.int32))


def _share(num_units: Any, plan: _Plan) -> Any:
    """Units of a program."""
    return jnp.maximum(lax.div(num_units + (plan.num_programs - 1), plan.num_programs), plan.min_share)


def _attend(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    work: Work,
    plan: _Plan,
) -> tuple[jax.Array, jax.Array]:
    """Every piece's output, transposed, and the base-2 logarithm of its weights' sum.

    Returns:
      float32 (slots, tiles, rows, heads) and (slots, heads). Tile t holds the dimensions from `_tiles(H)[t]` on.
      Slots of no piece are uninitialised.
    """
    num_items, heads, head_dim = q.shape
    num_slots = num_items + plan.num_programs
    tiles = _tiles(head_dim)
    kernel = plgpu.kernel(
        functools.partial(_attend_program, plan=plan),
        out_type=(
            jax.ShapeDtypeStruct((num_slots, len(tiles), _tile_rows(head_dim), heads), jnp.float32),
            jax.ShapeDtypeStruct((num_slots, heads), jnp.float32),
        ),
        scratch_types=_scratch_types(k_cache.shape[2], head_dim, k_cache.dtype, plan),
        grid=(plan.num_programs,),
        grid_names=("program",),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="paged_decode",
    )
    return kernel(q, k_cache, v_cache, page_table, kv_lens, *work)


def _scratch_types(page_size: int, head_dim: int, kv_dtype: Any, plan: _Plan) -> dict[str, Any]:
    dtype = plan.compute_dtype
    block, ring = (plan.block_keys, head_dim), (plan.num_stages, plan.block_keys, head_dim)
    swizzled = functools.partial(swizzled_smem, dtype=dtype, swizzle=swizzle_bytes(head_dim, dtype))
    is_wide = kv_dtype != dtype
    kv = plgpu.SMEM(ring, kv_dtype) if is_wide else swizzled(ring)
    wide = swizzled(block) if is_wide else None
    full = plgpu.Barrier(num_arrivals=max(1, plan.block_keys // page_size), num_barriers=plan.num_stages)
    free = plgpu.Barrier(num_barriers=plan.num_stages)
    return _Smem(
        q=swizzled((2, plan.heads, head_dim)),
        k=kv,
        v=kv,
        weights=swizzled((plan.heads, plan.block_keys)),
        k_wide=wide,
        v_wide=wide,
        q_full=plgpu.Barrier(num_barriers=2),
        q_free=plgpu.Barrier(num_barriers=2),
        k_full=full,
        k_free=free,
        v_full=full,
        v_free=free,
    )._asdict()


def _tiles(head_dim: int) -> tuple[int, ...]:
    """Where tiles of `_tile_rows` dimensions begin. `wgmma` takes multiples of 64: 80 and 96 are two that overlap."""
    return (0,) if head_dim % 64 == 0 else (0, head_dim - 64)


def _tile_rows(head_dim: int) -> int:
    return head_dim if head_dim % 64 == 0 else 64


def _attend_program(
    q, k_cache, v_cache, page_table, kv_lens, unit_starts, first_rows, out, lse, /, *, plan: _Plan, **scratch
) -> None:
    smem = _Smem(**scratch)
    for_each_piece = functools.partial(
        _for_each_piece, Work(unit_starts, first_rows), kv_lens, k_cache.shape[0] * plan.items_per_kv_head, plan
    )
    warpgroup = lax.axis_index("warpgroup")
    pl.when(warpgroup == 0)(lambda: _compute(for_each_piece, out, lse, smem, plan))
    pl.when(warpgroup == 1)(lambda: _load(for_each_piece, q, k_cache, v_cache, page_table, smem, plan))


def _for_each_piece(
    work: Work, kv_lens: Any, items_per_row: int, plan: _Plan, body: Callable[[_Piece, Any], Any], init: Any
) -> Any:
    """Runs `carry = body(piece, carry)` over the program's pieces, in order; returns the last carry."""
    program = lax.axis_index("program")
    num_units = work.unit_starts[kv_lens.shape[0]]
    share = _share(num_units, plan)
    begin = program * share
    end = jnp.minimum(begin + share, num_units)

    def next_piece(carry):
        unit, row, rest = carry
        row = lax.while_loop(lambda row: work.unit_starts[row + 1] <= unit, lambda row: row + 1, row)
        kv_len = kv_lens[row]
        first_block = lax.div(_first_visible(kv_len, plan), plan.block_keys)
        blocks = lax.div(kv_len + plan.block_keys - 1, plan.block_keys) - first_block
        offset = unit - work.unit_starts[row]
        item = lax.div(offset, blocks)
        block = offset - item * blocks
        count = jnp.minimum(blocks - block, end - unit)
        # Along the line either the item grows or the program does, so that no two pieces have the same sum.
        slot = row * items_per_row + item + program
        block += first_block
        return unit + count, row, body(_Piece(row, item, slot, kv_len, block, block + count), rest)

    return lax.while_loop(lambda carry: carry[0] < end, next_piece, (begin, work.first_rows[program], init))[2]


def _load(for_each_piece, q, k_cache, v_cache, page_table, smem: _Smem, plan: _Plan) -> None:
    """The warpgroup that fills the ring."""
    num_kv_heads, _, page_size, _ = k_cache.shape
    items_per_row = num_kv_heads * plan.items_per_kv_head
    copy_len = min(page_size, plan.block_keys)

    def load_piece(piece: _Piece, carry):
        step, num_pieces = carry
        q_slot = lax.rem(num_pieces, 2)
        pl.when(num_pieces >= 2)(lambda: plgpu.barrier_wait(smem.q_free.at[q_slot]))
        plgpu.copy_gmem_to_smem(q.at[piece.row * items_per_row + piece.item], smem.q.at[q_slot], smem.q_full.at[q_slot])
        kv_head = lax.div(piece.item, plan.items_per_kv_head)
        first_page = lax.div(_first_visible(piece.kv_len, plan), page_size)
        last_page = lax.div(piece.kv_len - 1, page_size)

        def load_block(block, step):
            slot = lax.rem(step, plan.num_stages)
            parts = []
            for start in range(0, plan.block_keys, copy_len):
                position = block * plan.block_keys + start
                # In place of a page that the row does not see one that it sees is read again, and masked.
                column = jnp.clip(lax.div(position, page_size), first_page, last_page)
                offset = pl.multiple_of(lax.rem(position, page_size), copy_len)
                parts.append((start, page_table[piece.row, column], offset))
            for cache, ring, full, free in (
                (k_cache, smem.k, smem.k_full, smem.k_free),
                (v_cache, smem.v, smem.v_full, smem.v_free),
            ):
                pl.when(step >= plan.num_stages)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
                for start, page, offset in parts:
                    source = cache.at[kv_head, page, pl.ds(offset, copy_len)]
                    plgpu.copy_gmem_to_smem(source, ring.at[slot, pl.ds(start, copy_len)], full.at[slot])
            return step + 1

        return lax.fori_loop(piece.begin, piece.end, load_block, step), num_pieces + 1

    steps, num_pieces = for_each_piece(load_piece, (jnp.int32(0), jnp.int32(0)))
    # The last round is waited for too, as the interpreter demands of every barrier.
    for count, barriers in ((num_pieces, (smem.q_free,)), (steps, (smem.k_free, smem.v_free))):
        for barrier in barriers:
            for slot in range(barrier.shape[0]):
                pl.when(slot < count)(lambda barrier=barrier, slot=slot: plgpu.barrier_wait(barrier.at[slot]))


def _compute(for_each_piece, out, lse, smem: _Smem, plan: _Plan) -> None:
    """The warpgroup that multiplies."""
    tiles, tile_rows = _tiles(smem.q.shape[2]), _tile_rows(smem.q.shape[2])
    wgmma, per_head = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(0)

    def compute_piece(piece: _Piece, carry):
        step, num_pieces = carry
        q_slot = lax.rem(num_pieces, 2)
        plgpu.barrier_wait(smem.q_full.at[q_slot])
        sums = _Sums(
            acc=tuple(plgpu.layout_cast(jnp.zeros((tile_rows, plan.heads), jnp.float32), wgmma) for _ in tiles),
            peak=plgpu.layout_cast(jnp.full((plan.heads,), MIN_SCORE, jnp.float32), per_head),
            totals=plgpu.layout_cast(jnp.zeros((plan.block_keys, plan.heads), jnp.float32), wgmma),
        )

        def compute_block(block, carry):
            step, sums = carry
            slot = lax.rem(step, plan.num_stages)
            first_seen, end_seen = _first_visible(piece.kv_len, plan), piece.kv_len
            first_key = block * plan.block_keys
            seen = first_seen - first_key, end_seen - first_key
            return step + 1, _add_block(sums, smem.q.at[q_slot], slot, seen, smem, plan)

        step, sums = lax.fori_loop(piece.begin, piece.end, compute_block, (step, sums))
        plgpu.barrier_arrive(smem.q_free.at[q_slot])
        total = sums.totals.sum(axis=0)  # At least 1: a piece's blocks are all seen in part.
        norm = 1 / total
        for t, tile in enumerate(sums.acc):
            out[piece.slot, t] = tile * lax.broadcast_in_dim(norm, tile.shape, [1])
        lse[piece.slot] = sums.peak + jnp.log2(total)
        return step, num_pieces + 1

    for_each_piece(compute_piece, (jnp.int32(0), jnp.int32(0)))


class _Sums(NamedTuple):
    """An online softmax under way."""

    acc: Any
    """float32 (rows, heads) for each tile: the output, transposed, before division by the weights' sum."""
    peak: Any
    """float32 (heads,): the highest score, in units of log 2."""
    totals: Any
    """float32 (keys, heads): the weights' sums, apart for every place in a block, added up at the end of the piece."""


def _add_block(sums: _Sums, q: Any, slot: jax.Array, seen: tuple[Any, Any], smem: _Smem, plan: _Plan) -> _Sums:
    """Attention over the block in the ring's slot, of which `q` sees the keys `seen[0]` to `seen[1] - 1`."""
    plgpu.barrier_wait(smem.k_full.at[slot])
    keys = smem.k.at[slot] if smem.k_wide is None else _widen(smem.k.at[slot], smem.k_wide)
    products = _multiply(keys, q.transpose((1, 0)))
    plgpu.barrier_arrive(smem.k_free.at[slot])

    scores, factor = capped_scores(products, plan.scale, plan.soft_cap)
    scores *= factor
    scores = jnp.where(_seen(scores.shape, *seen), scores, -jnp.inf)
    peak = jnp.maximum(sums.peak, scores.max(axis=0))
    decay = jnp.exp2(sums.peak - peak)
    weights = jnp.exp2(scores - lax.broadcast_in_dim(peak, scores.shape, [1]))
    totals = sums.totals * lax.broadcast_in_dim(decay, weights.shape, [1]) + weights
    smem.weights.transpose((1, 0))[...] = weights.astype(smem.weights.dtype)

    plgpu.barrier_wait(smem.v_full.at[slot])
    values = smem.v.at[slot] if smem.v_wide is None else _widen(smem.v.at[slot], smem.v_wide)
    pl.when((seen[0] > 0) | (seen[1] < plan.block_keys))(lambda: _zero_unseen(values, *seen))
    plgpu.commit_smem()
    tile_rows = _tile_rows(values.shape[1])
    acc = tuple(
        tile * lax.broadcast_in_dim(decay, tile.shape, [1])
        + _multiply(values.at[:, pl.ds(offset, tile_rows)].transpose((1, 0)), smem.weights.transpose((1, 0)))
        for tile, offset in zip(sums.acc, _tiles(values.shape[1]), strict=True)
    )
    plgpu.barrier_arrive(smem.v_free.at[slot])
    return _Sums(acc, peak, totals)


def _multiply(a: Any, b: Any) -> jax.Array:
    """(M, K) Ref times (K, N) Ref, float32 (M, N)."""

    def multiply(acc_ref):
        plgpu.wgmma(acc_ref, a, b)
        return acc_ref[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), jnp.float32))


def _widen(narrow: Any, wide: Any) -> Any:
    """Converts a block for `wgmma`."""
    swizzle = swizzle_bytes(wide.shape[1], wide.dtype)
    layout = plgpu.Layout.SMEM_GMEM_COPY(wide.shape, wide.dtype, swizzle)
    wide[...] = plgpu.layout_cast(narrow[...], layout).astype(wide.dtype)
    plgpu.commit_smem()
    return wide


def _seen(shape: tuple[int, ...], seen_from: jax.Array, seen_to: jax.Array) -> jax.Array:
    """Whether the row sees the key, for (keys, ...)."""
    offsets = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA)
    return (offsets >= seen_from) & (offsets < seen_to)


def _zero_unseen(values: Any, seen_from: jax.Array, seen_to: jax.Array) -> None:
    """Clears values whose weight is 0: their slots may hold no token but NaN, and 0 * NaN is NaN."""
    num_keys, head_dim = values.shape
    width = math.gcd(head_dim, 64)  # A part at a time, for the sake of registers.
    seen = _seen((num_keys, width), seen_from, seen_to)
    for start in range(0, head_dim, width):
        part = values.at[:, pl.ds(start, width)]
        part[...] = jnp.where(
            seen, plgpu.layout_cast(part[...], plgpu.Layout.WGMMA), jnp.zeros(seen.shape, values.dtype)
        )


def _merge(
    slots: jax.Array,
    slots_lse: jax.Array,
    sinks: jax.Array | None,
    work: Work,
    out_type: jax.ShapeDtypeStruct,
    items_per_row: int,
    plan: _Plan,
) -> tuple[jax.Array, jax.Array]:
    """Joins every item's slots.

    Returns:
      `out_type`, (items, heads, H), and the natural logarithm of the weights' sum, float32 (items, padded heads).
    """
    num_items, _, head_dim = out_type.shape
    kernel = plgpu.kernel(
        functools.partial(_merge_item, items_per_row=items_per_row, has_sinks=sinks is not None, plan=plan),
        out_type=(out_type, jax.ShapeDtypeStruct((num_items, plan.heads), jnp.float32)),
        scratch_types={"rows": plgpu.SMEM((plan.heads, head_dim), out_type.dtype)},
        grid=(num_items,),
        grid_names=("item",),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="paged_decode_merge",
    )
    return kernel(slots, slots_lse, *(() if sinks is None else (sinks,)), work.unit_starts)


def _merge_item(slots, slots_lse, *refs, rows, items_per_row: int, has_sinks: bool, plan: _Plan) -> None:
    *sinks, unit_starts, out, lse = refs
    _, num_tiles, tile_rows, heads = slots.shape
    item = lax.axis_index("item")
    row = lax.div(item, items_per_row)
    sink_row = item - row * items_per_row
    blocks = lax.div(unit_starts[row + 1] - unit_starts[row], items_per_row)
    first_unit = unit_starts[row] + sink_row * blocks
    share = _share(unit_starts[unit_starts.shape[0] - 1], plan)
    first = item + lax.div(first_unit, share)
    last = item + lax.div(first_unit + blocks - 1, share)
    end = jnp.where(blocks > 0, last + 1, first)
    wgmma, per_head = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(0)
    at_once = max(1, _MERGE_REGISTERS * 128 // (num_tiles * tile_rows * heads))

    def merge(turn, carry):
        """`at_once` slots, whose loads are all under way before the first is used."""
        acc, peak, total = carry
        at = [jnp.minimum(first + turn * at_once + i, last) for i in range(at_once)]
        lses = [plgpu.load(slots_lse.at[slot], layout=per_head, optimized=False) for slot in at]
        lses = [x + jnp.where(first + turn * at_once + i < end, 0.0, -jnp.inf) for i, x in enumerate(lses)]
        parts = [
            [plgpu.load(slots.at[slot, t], layout=wgmma, optimized=False) for t in range(num_tiles)] for slot in at
        ]
        new_peak = functools.reduce(jnp.maximum, lses, peak)
        decay = jnp.exp2(peak - new_peak)
        total = total * decay
        acc = [tile * lax.broadcast_in_dim(decay, tile.shape, [1]) for tile in acc]
        for part, part_lse in zip(parts, lses, strict=True):
            weight = jnp.exp2(part_lse - new_peak)
            total += weight
            acc = [a + p * lax.broadcast_in_dim(weight, p.shape, [1]) for a, p in zip(acc, part, strict=True)]
        return tuple(acc), new_peak, total

    acc = tuple(plgpu.layout_cast(jnp.zeros((tile_rows, heads), jnp.float32), wgmma) for _ in range(num_tiles))
    if has_sinks:
        peak = sink_scores(plgpu.load(sinks[0].at[sink_row], layout=per_head, optimized=False))
        total = plgpu.layout_cast(jnp.ones((heads,), jnp.float32), per_head)
    else:
        peak = plgpu.layout_cast(jnp.full((heads,), MIN_SCORE, jnp.float32), per_head)
        total = plgpu.layout_cast(jnp.zeros((heads,), jnp.float32), per_head)
    turns = lax.div(end - first + at_once - 1, at_once)
    acc, peak, total = lax.fori_loop(0, turns, merge, (acc, peak, total))
    norm = 1 / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # A padding row gives zeros.
    for tile, offset in zip(acc, _tiles(rows.shape[1]), strict=True):
        tile = (tile * lax.broadcast_in_dim(norm, tile.shape, [1])).astype(rows.dtype)
        rows.at[:, pl.ds(offset, tile_rows)].transpose((1, 0))[...] = tile
    lse[item] = (peak + jnp.log2(total)) * (1 / LOG2_E) + jnp.where(blocks > 0, 0.0, -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(rows.at[pl.ds(0, out.shape[1])], out.at[item])
    plgpu.wait_smem_to_gmem(0)
