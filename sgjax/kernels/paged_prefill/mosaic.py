"""`paged_prefill` for Hopper GPUs: FlashAttention-3's schedule over cache pages.

A program has three warpgroups. One issues the copies; the other two compute, each 64 query rows against the same blocks
of keys, and take turns at the tensor cores: while one multiplies, the other does its softmax. Programs stay on their
multiprocessor and go through a list of tiles, made on the device from the batch, so that loads run ahead from one tile
into the next. See docs/adr/0009.

A warpgroup's rows are consecutive tokens by query heads of one KV head, token by token, so that queries come by TMA
straight out of (T, K, G, H), and results go straight into it.
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
    capped_scores,
    check_attention,
    num_multiprocessors,
    sink_scores,
    swizzled_smem,
)
from sgjax.kernels.paged_prefill.mosaic_plan import CONSUMERS, ROWS, Plan, Tuning, make_plan
from sgjax.kernels.paged_prefill.mosaic_split import choose_num_splits, cut, join
from sgjax.kernels.paged_prefill.mosaic_tiles import Tile, lse_of_tokens, make_tiles

_PRODUCER = CONSUMERS  # Index of its warpgroup.
_DEFAULT_TUNING = Tuning()


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
    tuning: Tuning = _DEFAULT_TUNING,
) -> Any:
    """See `api.PagedPrefill`.

    Raises:
      NotImplementedError: names what the kernel does not do.
      ValueError: names what no call may ask for.
    """
    check_attention(q, k_cache, v_cache)
    if not causal and window is not None:
        raise ValueError(f"window is {window}, and queries that see all keys have none")
    plan = make_plan(
        q,
        k_cache,
        tuning,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        causal=causal,
        has_sinks=sinks is not None,
        return_lse=return_lse,
    )
    num_programs = tuning.num_programs or num_multiprocessors()
    rows = page_table, kv_lens, q_starts
    num_splits = choose_num_splits(q.shape[0], page_table.shape[1], plan, num_programs, tuning.max_splits)
    if num_splits > 1:
        part_q, *part_rows = cut(q, *rows, page_size=plan.page_size, num_splits=num_splits)
        unsplit = dataclasses.replace(tuning, max_splits=1)
        options = dict(scale=scale, soft_cap=soft_cap, causal=False, return_lse=True, tuning=unsplit)
        outs, lses = paged_prefill(part_q, k_cache, v_cache, *part_rows, **options)
        out, lse = join(outs, lses, sinks, num_splits=num_splits)
    else:
        out, lse = _attend(q, k_cache, v_cache, *rows, sinks, plan, num_programs)
    return (out, lse) if return_lse else out


paged_prefill.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]


def _attend(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    sinks: jax.Array | None,
    plan: Plan,
    num_programs: int,
) -> tuple[jax.Array, jax.Array | None]:
    """Calls the kernel. Returns (T, K, G, H) and, where the plan has it, the log-sum-exp (T, K, G)."""
    tiles = make_tiles(
        kv_lens,
        q_starts,
        q.shape[0],
        tile_tokens=plan.tile_tokens,
        block_keys=plan.block_keys,
        causal=plan.causal,
        window=plan.window,
    )
    num_tiles = tiles.tiles.shape[0]
    num_programs = min(num_programs, num_tiles * plan.heads_of_grid)
    operands = [q, k_cache, v_cache, page_table, tiles.tiles]
    if sinks is not None:
        # One value per row of a tile.
        operands.append(jnp.tile(sinks.reshape(plan.heads_of_grid, plan.num_heads), (1, plan.num_tokens)))
    out_type = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    if plan.return_lse:
        out_type.append(jax.ShapeDtypeStruct((num_tiles, plan.heads_of_grid, CONSUMERS, ROWS), jnp.float32))
    kernel = plgpu.kernel(
        functools.partial(_run, plan=plan, num_programs=num_programs),
        out_type=out_type,
        scratch_types=_scratch_types(plan, k_cache.dtype),
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,  # No thread reads shared memory that another one of its warpgroup writes.
            reduction_scratch_bytes=0,  # Rows are reduced within a warp.
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        kernel_name="paged_prefill",
    )
    out, *lse = kernel(*operands)
    return out, lse_of_tokens(lse[0], tiles, kv_lens, q_starts, q.shape[:3], plan.tile_tokens) if lse else None


class _Scratch(NamedTuple):
    """A program's shared memory: types outside of the kernel, Refs inside. Leading axes count consumers or stages."""

    q: Any
    """Two views: rows as `wgmma` reads them, and tokens by heads as they are copied."""
    k: Any
    v: Any
    """Two views: blocks, and their tiles of 8 rows as they lie in memory."""
    raw: Any
    """A block of keys and one of values as they are in the cache, where `wgmma` does not take that."""
    out: Any
    """As `q`; None where that is used again."""
    lse: Any
    weights: Any
    q_full: Any
    q_free: Any
    """Of every other tile. Barriers are indexed by what changes: known addresses would be kept in registers."""
    k_full: Any
    k_free: Any
    v_full: Any
    v_free: Any
    raw_full: Any
    turn: Any
    """Of consumer c, to give work to the tensor cores."""
    tail: Any
    """Both consumers have cleared values past the sequence's end."""


def _scratch_types(plan: Plan, kv_dtype: Any) -> dict[str, Any]:
    swizzled = functools.partial(swizzled_smem, dtype=jnp.bfloat16, swizzle=plan.swizzle)
    num_parts = len(plan.parts)
    rows = swizzled((CONSUMERS, num_parts, ROWS, plan.columns))
    tokens = plgpu.SMEM(
        (CONSUMERS, num_parts, plan.num_tokens, plan.num_heads, plan.columns),
        jnp.bfloat16,
        transforms=(plgpu.SwizzleTransform(plan.swizzle),),  # type: ignore[abstract]
    )
    blocks = swizzled((plan.num_stages, plan.block_keys, plan.head_dim))
    tiles = plgpu.SMEM((plan.num_stages, plan.block_keys // 8, num_parts, 8, plan.columns), jnp.bfloat16)
    # To the interpreter, the views of a union are different memory.
    union = (lambda *views: views) if plan.interpreted else plgpu.RefUnion
    barriers = functools.partial(plgpu.Barrier, num_barriers=plan.num_stages)
    full = barriers(num_arrivals=1 if plan.converts else plan.copies)
    free = barriers(num_arrivals=CONSUMERS)
    return _Scratch(
        q=union(rows, tokens),
        k=blocks,
        v=union(blocks, tiles),
        raw=plgpu.SMEM((2, plan.block_keys, plan.head_dim), kv_dtype) if plan.converts else None,
        out=union(rows, tokens) if plan.own_output else None,
        lse=plgpu.SMEM((CONSUMERS, ROWS), jnp.float32) if plan.return_lse else None,
        weights=swizzled_smem((CONSUMERS, ROWS, plan.block_keys), jnp.bfloat16, 128) if plan.interpreted else None,
        q_full=plgpu.Barrier(num_arrivals=num_parts, num_barriers=CONSUMERS),
        q_free=plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=2),
        k_full=full,
        k_free=free,
        v_full=full,
        v_free=free,
        raw_full=plgpu.Barrier(num_arrivals=plan.copies, num_barriers=2) if plan.converts else None,
        turn=plgpu.Barrier(num_barriers=CONSUMERS),
        tail=free,
    )._asdict()


class _Refs(NamedTuple):
    """Global memory."""

    q: Any
    k_cache: Any
    v_cache: Any
    page_table: Any
    tiles: Any
    sinks: Any
    out: Any
    lse: Any


class _Done(NamedTuple):
    """What a program has done before a tile: blocks of keys, and tiles that had some."""

    blocks: Any
    tiles: Any


def _run(*refs, plan: Plan, num_programs: int, **scratch) -> None:
    """A program: each warpgroup goes through the program's tiles."""
    operands, outputs = refs[: 5 + plan.has_sinks], refs[5 + plan.has_sinks :]
    sinks, lse = () if plan.has_sinks else (None,), () if plan.return_lse else (None,)
    gmem, smem = _Refs(*operands, *sinks, *outputs, *lse), _Scratch(**scratch)
    warpgroup = lax.axis_index("warpgroup")
    num_tiles = gmem.tiles.shape[0] * plan.heads_of_grid

    def for_each_tile(attend):
        """Calls `attend(tile, done)` for the program's tiles; returns what was done in all."""

        def step(i, done):
            # Back and forth: a program with a long tile gets a short one next.
            program = lax.axis_index("program")
            at = i * num_programs + jnp.where(i % 2 == 0, program, num_programs - 1 - program)
            place = jnp.minimum(lax.div(at, plan.heads_of_grid), gmem.tiles.shape[0] - 1)
            fields = (gmem.tiles[place, j] for j in range(len(Tile._fields) - 2))
            tile = Tile(*fields, place=place, head=lax.rem(at, plan.heads_of_grid))
            pl.when((tile.num_tokens > 0) & (at < num_tiles))(lambda: attend(tile, done))
            num_blocks = jnp.where(at < num_tiles, tile.num_blocks, 0)
            return _Done(done.blocks + num_blocks, done.tiles + jnp.minimum(num_blocks, 1))

        return lax.fori_loop(0, pl.cdiv(num_tiles, num_programs), step, _Done(jnp.int32(0), jnp.int32(0)))

    @pl.when(warpgroup < CONSUMERS)
    def _():
        plgpu.set_max_registers(plan.consumer_registers, action="increase")
        done = for_each_tile(lambda tile, done: _Consumer(plan, gmem, smem, tile, done, warpgroup).attend())
        plgpu.wait_smem_to_gmem(0)
        if plan.interpreted:
            pl.when((done.blocks > 0) & (warpgroup == 0))(lambda: plgpu.barrier_wait(smem.turn.at[0]))

    @pl.when(warpgroup == _PRODUCER)
    def _():
        plgpu.set_max_registers(plan.producer_registers, action="decrease")
        done = for_each_tile(lambda tile, done: _Producer(plan, gmem, smem, tile, done).load())
        if plan.interpreted:
            _wait_for_all(smem, plan, done)


def _wait_for_all(smem: _Scratch, plan: Plan, done: _Done) -> None:
    """Waits for what was freed last: to the interpreter, a phase that nobody has seen is an error."""
    for slot in range(plan.num_stages):
        for barriers in (smem.k_free, smem.v_free):
            pl.when(done.blocks > slot)(functools.partial(plgpu.barrier_wait, barriers.at[slot]))
    pl.when(done.tiles > 0)(lambda: plgpu.barrier_wait(smem.q_free.at[lax.rem(done.tiles - 1, 2)]))


@dataclasses.dataclass(frozen=True)
class _Producer:
    """The warpgroup that fills shared memory: a tile's queries, and its blocks as places for them become free."""

    plan: Plan
    gmem: _Refs
    smem: _Scratch
    tile: Tile
    done: _Done

    def load(self) -> None:
        smem, num_blocks = self.smem, self.tile.num_blocks
        v, _ = smem.v
        keys = (0, self.gmem.k_cache, smem.k, smem.k_full, smem.k_free)
        values = (1, self.gmem.v_cache, v, smem.v_full, smem.v_free)
        load_block = self._convert_block if self.plan.converts else self._load_block
        if self.plan.converts:
            for which, cache in (keys[:2], values[:2]):
                pl.when(num_blocks > 0)(functools.partial(self._load_raw, 0, which, cache))

        @pl.loop(0, num_blocks)
        def _(i):
            load_block(i, *keys)
            pl.when(i == 0)(self._load_queries)
            load_block(i, *values)

    def _load_queries(self) -> None:
        # Tokens past the row's are others' or, past the array, zeros: nothing that is kept depends on them.
        plan, smem, tile = self.plan, self.smem, self.tile
        _, tokens = smem.q
        kv_head, heads = plan.query_heads(tile.head)
        pl.when(self.done.tiles > 0)(lambda: plgpu.barrier_wait(smem.q_free.at[lax.rem(self.done.tiles - 1, 2)]))
        for consumer in range(CONSUMERS):
            source = pl.ds(tile.first_token + consumer * plan.num_tokens, plan.num_tokens)
            for i, columns in enumerate(plan.parts):
                source_part = self.gmem.q.at[source, kv_head, heads, columns]
                plgpu.copy_gmem_to_smem(source_part, tokens.at[consumer, i], smem.q_full.at[consumer])

    def _load_block(self, i, which, cache, buffer, full, free) -> None:
        del which
        slot = self._wait_for_slot(i, free)
        self._copy_pages(i, cache, buffer.at[slot], full.at[slot])

    def _convert_block(self, i, which, cache, buffer, full, free) -> None:
        """Fills a slot with bfloat16 from what was loaded before, and loads the next block's."""
        plan, smem = self.plan, self.smem
        plgpu.barrier_wait(smem.raw_full.at[which])
        slot = self._wait_for_slot(i, free)
        for start in range(0, plan.block_keys, ROWS):
            for columns in plan.parts:
                raw = smem.raw.at[which, pl.ds(start, ROWS), columns]
                values = plgpu.load(raw, layout=plgpu.Layout.WGMMA, optimized=False)
                buffer[slot, pl.ds(start, ROWS), columns] = values.astype(jnp.float32).astype(buffer.dtype)
        plgpu.commit_smem()
        plgpu.barrier_arrive(full.at[slot])
        pl.when(i + 1 < self.tile.num_blocks)(lambda: self._load_raw(i + 1, which, cache))

    def _load_raw(self, i, which, cache) -> None:
        self._copy_pages(i, cache, self.smem.raw.at[which], self.smem.raw_full.at[which])

    def _wait_for_slot(self, i, free) -> Any:
        uses = self.done.blocks + i
        slot = lax.rem(uses, self.plan.num_stages)
        pl.when(uses >= self.plan.num_stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        return slot

    def _copy_pages(self, i, cache, block, full) -> None:
        plan, tile = self.plan, self.tile
        kv_head, _ = plan.query_heads(tile.head)
        position = (tile.end - 1 - i) * plan.block_keys
        part = pl.ds(0, plan.page_size)
        if plan.copy_len < plan.page_size:
            part = pl.ds(pl.multiple_of(lax.rem(position, plan.page_size), plan.copy_len), plan.copy_len)
        for j in range(plan.copies):
            # Past the sequence's last page that is read again, and masked.
            start = jnp.minimum(position + j * plan.copy_len, tile.kv_len - 1)
            page_id = self.gmem.page_table[tile.sequence, lax.div(start, plan.page_size)]
            rows = block.at[pl.ds(j * plan.copy_len, plan.copy_len)]
            plgpu.copy_gmem_to_smem(cache.at[kv_head, page_id, part], rows, full)


class _State(NamedTuple):
    """Of a warpgroup's rows, over the blocks so far. Scores are in units of log 2."""

    sums: Any
    """(64, H): weights @ values, without the last block's."""
    max_score: Any
    total: Any
    """Of weights, relative to exp2(max_score)."""
    weights: Any = None
    """(64, block): the last block's."""


@dataclasses.dataclass(frozen=True)
class _Consumer:
    """A warpgroup that computes: 64 rows of a tile."""

    plan: Plan
    gmem: _Refs
    smem: _Scratch
    tile: Tile
    done: _Done
    index: Any

    def attend(self) -> None:
        # Else addresses that depend on it alone are computed once, and kept in registers.
        self = dataclasses.replace(self, index=lax.optimization_barrier(self.index))
        state = lax.cond(self.tile.num_blocks > 0, self._attend_blocks, lambda state: state, self._first_state())
        norm = 1 / jnp.maximum(state.total, jnp.finfo(jnp.float32).tiny)  # A row that saw no key gives zeros.
        self._store(state.sums * lax.broadcast_in_dim(norm, state.sums.shape, [0]))
        if self.plan.return_lse:
            lse = self.smem.lse.at[self.index]
            lse[...] = (state.max_score + jnp.log2(state.total)) * (1 / LOG2_E)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(lse, self.gmem.lse.at[self.tile.place, self.tile.head, self.index])

    def _first_state(self) -> _State:
        """A sink is a key that was seen, without a value."""
        layout = plgpu.Layout.WGMMA.reduce(1)
        sums = plgpu.layout_cast(jnp.zeros((ROWS, self.plan.head_dim), jnp.float32), plgpu.Layout.WGMMA)
        if self.plan.has_sinks:
            sinks = plgpu.load(self.gmem.sinks.at[self.tile.head], layout=layout, optimized=False)
            total = plgpu.layout_cast(jnp.ones((ROWS,), jnp.float32), layout)
            return _State(sums, sink_scores(sinks), total)
        max_score = plgpu.layout_cast(jnp.full((ROWS,), MIN_SCORE, jnp.float32), layout)
        return _State(sums, max_score, plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), layout))

    def _attend_blocks(self, state: _State) -> _State:
        tile = self.tile
        state = self._first_block(state)
        next_masked, next_whole = (functools.partial(self._next_block, is_masked=masked) for masked in (True, False))
        first_early = tile.num_blocks - tile.num_early
        state = lax.fori_loop(1, tile.num_late, next_masked, state)
        state = lax.fori_loop(tile.num_late, first_early, next_whole, state)
        if self.plan.window is not None:
            state = lax.fori_loop(first_early, tile.num_blocks, next_masked, state)
        if self.plan.own_output:
            self._free_queries()
        return self._last_block(state)

    def _slot(self, i: Any) -> Any:
        return lax.rem(self.done.blocks + i, self.plan.num_stages)

    def _free_queries(self) -> None:
        plgpu.barrier_arrive(self.smem.q_free.at[lax.rem(self.done.tiles, 2)])

    def _first_block(self, state: _State) -> _State:
        """Scores and weights of the first block, whose values wait for the next block's scores."""
        plan, smem, tile, slot = self.plan, self.smem, self.tile, self._slot(0)
        plgpu.barrier_wait(smem.q_full.at[self.index])
        plgpu.barrier_wait(smem.k_full.at[slot])
        # The first turn of all is consumer 0's.
        pl.when(self.done.blocks + self.index > 0)(lambda: plgpu.barrier_wait(smem.turn.at[self.index]))
        if plan.interpreted:
            self._copy_view()

        def multiply(scores_ref):
            self._start_scores(scores_ref, slot)
            plgpu.barrier_arrive(smem.turn.at[1 - self.index])
            return scores_ref[...]

        scores = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, plan.block_keys), jnp.float32))
        plgpu.barrier_arrive(smem.k_free.at[slot])
        _, max_score, total, weights = self._softmax(scores, state, 0, is_masked=True)
        plgpu.barrier_wait(smem.v_full.at[slot])
        # Of all blocks, only the first may reach past the sequence's end.
        num_written = tile.kv_len - (tile.end - 1) * plan.block_keys
        pl.when(num_written < plan.block_keys)(lambda: self._clear_tail(slot, num_written))
        return _State(state.sums, max_score, total, weights.astype(jnp.bfloat16))

    def _next_block(self, i: Any, state: _State, *, is_masked: bool) -> _State:
        """Scores of block i, and its softmax while the values of the block before are added up."""
        plan, smem, slot, slot_before = self.plan, self.smem, self._slot(i), self._slot(i - 1)
        plgpu.barrier_wait(smem.k_full.at[slot])
        plgpu.barrier_wait(smem.turn.at[self.index])

        def multiply(scores_ref, sums_ref):
            finish = self._start_sums(sums_ref, state, slot_before, lambda: self._start_scores(scores_ref, slot))
            plgpu.barrier_arrive(smem.turn.at[1 - self.index])
            scores = plgpu.wgmma_accumulator_load(scores_ref, wait_n=1)
            plgpu.barrier_arrive(smem.k_free.at[slot])
            results = self._softmax(scores, state, i, is_masked=is_masked)
            # The softmax must come before the wait for the sums, and the rounding of weights after it, since what is
            # waited for reads the registers that they go to. ptxas would do it all after that wait, were it not for a
            # branch in between, which this other wait is.
            decay, max_score, total, weights = lax.optimization_barrier(results)
            plgpu.barrier_wait(smem.v_full.at[slot])
            sums = finish()
            plgpu.barrier_arrive(smem.v_free.at[slot_before])
            sums *= lax.broadcast_in_dim(decay, sums.shape, [0])
            return _State(sums, max_score, total, weights.astype(jnp.bfloat16))

        widths = (plan.block_keys, plan.head_dim)
        return pl.run_scoped(multiply, *(plgpu.WGMMAAccumulatorRef((ROWS, width), jnp.float32) for width in widths))

    def _last_block(self, state: _State) -> _State:
        """Adds the values of the last block."""
        slot = self._slot(self.tile.num_blocks - 1)

        def multiply(sums_ref):
            return self._start_sums(sums_ref, state, slot, lambda: None)()

        sums = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, self.plan.head_dim), jnp.float32))
        plgpu.barrier_arrive(self.smem.v_free.at[slot])
        return state._replace(sums=sums, weights=None)

    def _start_scores(self, scores_ref: Any, slot: Any) -> None:
        rows, _ = self.smem.q
        for i, columns in enumerate(self.plan.parts):
            plgpu.wgmma(scores_ref, rows.at[self.index, i], self.smem.k.at[slot, :, columns].transpose((1, 0)))

    def _start_sums(self, sums_ref: Any, state: _State, slot: Any, start_before: Callable[[], None]) -> Any:
        """Starts `start_before()`, then sums + weights @ values; returns what waits for the result."""
        values, _ = self.smem.v
        if self.plan.interpreted:
            weights = self.smem.weights.at[self.index]
            weights[...] = state.weights
            plgpu.commit_smem()
            start_before()
            plgpu.wgmma(sums_ref, weights, values.at[slot])
            return lambda: state.sums + sums_ref[...]
        sums_ref[...] = state.sums
        start_before()
        plgpu.wgmma(sums_ref, state.weights, values.at[slot])
        return lambda: sums_ref[...]

    def _softmax(
        self, products: jax.Array, state: _State, i: Any, *, is_masked: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """A step of the online softmax: (decay of what was before, largest score, sum of weights, weights)."""
        plan = self.plan
        scores, factor = capped_scores(products, plan.scale, plan.soft_cap)
        if is_masked:
            scores = jnp.where(self._visible(scores.shape, i), scores, -jnp.inf)
        max_score = jnp.maximum(state.max_score, scores.max(axis=1) * factor)
        decay = jnp.exp2(state.max_score - max_score)
        weights = jnp.exp2(scores * factor - lax.broadcast_in_dim(max_score, scores.shape, [0]))
        return decay, max_score, state.total * decay + weights.sum(axis=1), weights

    def _visible(self, shape: tuple[int, ...], i: Any) -> jax.Array:
        """Which keys of block i each row sees."""
        plan, tile = self.plan, self.tile
        iota = functools.partial(plgpu.broadcasted_iota, jnp.int32, shape, layout=plgpu.Layout.WGMMA)
        keys = iota(1) + (tile.end - 1 - i) * plan.block_keys
        if not plan.causal:
            return keys < tile.kv_len
        positions = lax.div(iota(0), plan.num_heads) + (tile.first_position + self.index * plan.num_tokens)
        visible = keys <= positions
        return visible if plan.window is None else visible & (keys > positions - plan.window)

    def _clear_tail(self, slot: Any, num_written: Any) -> None:
        """Clears values of slots that hold no token: they may be NaN, and 0 * NaN is NaN. Consumers take turns."""
        plan, smem = self.plan, self.smem
        blocks, tiles = smem.v
        shape = (8, plan.columns)
        layout = plgpu.Layout.WG_STRIDED(shape, vec_size=math.prod(shape) // 128)
        rows = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)

        @pl.loop(lax.div(num_written, 8) + self.index, plan.block_keys // 8, step=CONSUMERS)
        def _(i):
            for j, columns in enumerate(plan.parts):
                # A swizzle moves values within a row alone.
                tile = blocks.at[slot, pl.ds(i * 8, 8), columns] if plan.interpreted else tiles.at[slot, i, j]
                values = tile[...]
                tile[...] = jnp.where(rows + i * 8 < num_written, values, jnp.zeros_like(values))

        plgpu.commit_smem()
        plgpu.barrier_arrive(smem.tail.at[slot])
        plgpu.barrier_wait(smem.tail.at[slot])

    def _store(self, values: jax.Array) -> None:
        """Copies the rows' results out. Copies have a static size: fewer tokens take one per bit of their number."""
        plan, smem, tile = self.plan, self.smem, self.tile
        kv_head, heads = plan.query_heads(tile.head)
        first_token = tile.first_token + self.index * plan.num_tokens
        num_tokens = jnp.clip(tile.num_tokens - self.index * plan.num_tokens, 0, plan.num_tokens)
        rows, tokens = smem.out if plan.own_output else smem.q
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # The tile before has left the buffer.
        for i, columns in enumerate(plan.parts):
            part = lax.slice(values, (0, columns.start), (ROWS, columns.start + columns.size)).astype(jnp.bfloat16)
            if plan.interpreted:
                tokens[self.index, i] = part.reshape(tokens.shape[2:])
            else:
                rows[self.index, i] = part
        plgpu.commit_smem()

        def copy_tokens(start, size):
            target = self.gmem.out.at[pl.ds(first_token + start, size), kv_head, heads]
            for i, columns in enumerate(plan.parts):
                plgpu.copy_smem_to_gmem(tokens.at[self.index, i, pl.ds(start, size)], target.at[:, :, columns])

        # A copy begins at a multiple of 128 bytes, which may be several tokens; what is left of them is one more size.
        aligned = max(1, 128 // (plan.num_heads * plan.columns * 2))
        start: Any = 0
        size = plan.num_tokens
        while size >= aligned:
            pl.when(num_tokens & size != 0)(functools.partial(copy_tokens, start, size))
            start, size = start + (num_tokens & size), size // 2
        for rest in range(1, aligned):
            pl.when(num_tokens & (aligned - 1) == rest)(functools.partial(copy_tokens, start, rest))
        if not plan.own_output:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            pl.when(tile.num_blocks > 0)(self._free_queries)

    def _copy_view(self) -> None:
        """For the interpreter, to which the views of the queries are different memory."""
        rows, tokens = self.smem.q
        for i in range(len(self.plan.parts)):
            rows[self.index, i] = tokens[self.index, i].reshape(ROWS, self.plan.columns)
        plgpu.commit_smem()
