"""`sampling_threshold` for Hopper GPUs: a cluster of blocks holds a row in shared memory and reads it once.

Each block has a part of the row. The threshold is built from its highest bits down, two a round: the blocks sum what
reaches each of three candidates, exchange the sums through global memory, and all take the largest that has enough.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from sgjax.kernels.hopper import check_device

_LANES = 128  # weights side by side in shared memory
_STEP_LINES = 8  # lines of `_LANES` that are summed at once
_MAX_LINES = 256  # of one TMA copy
_LARGEST_CLUSTER = 8
_ROUNDS = 15  # of two bits, for the 30 of a float32 in [0, 1]
_CACHE_LINE = 32  # floats
_NUM_SUMS = 2 * _ROUNDS + 1  # a search for top_k, the mass that it keeps, a search for top_p


def sampling_threshold(
    weights: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array, *, lines_per_block: int = 128
) -> jax.Array:
    """See `api.SamplingThreshold`. Raises `NotImplementedError` for what the kernel does not do.

    Args:
      lines_per_block: how many lines of 128 weights a block holds if a cluster of eight, the largest, can.
    """
    check_device()
    num_rows, vocab_size = weights.shape
    weights = jnp.pad(weights, ((0, 0), (0, -vocab_size % _LANES))).reshape(num_rows, -1, _LANES)
    num_lines = weights.shape[1]
    num_parts = min(_LARGEST_CLUSTER, pl.next_power_of_2(pl.cdiv(num_lines, lines_per_block)))
    part_lines = pl.cdiv(pl.cdiv(num_lines, num_parts), _STEP_LINES) * _STEP_LINES
    if part_lines > _MAX_LINES:
        raise NotImplementedError(
            f"the vocabulary is {vocab_size}, and this kernel takes up to {_LARGEST_CLUSTER * _MAX_LINES * _LANES}"
        )
    kernel = plgpu.kernel(
        functools.partial(_row, vocab_size=vocab_size, num_parts=num_parts),
        out_type=(
            jax.ShapeDtypeStruct((num_rows,), jnp.float32),
            jax.ShapeDtypeStruct((num_rows, _NUM_SUMS, num_parts, _CACHE_LINE), jnp.float32),  # scratch memory
        ),
        scratch_types={
            "part": plgpu.SMEM((part_lines, _LANES), jnp.float32),
            "own_sums": plgpu.SMEM((_CACHE_LINE,), jnp.float32),
            "loaded": plgpu.Barrier(),
            "summed": plgpu.ClusterBarrier(collective_axes=("part",)),
        },
        grid=(num_rows,),
        grid_names=("row",),
        cluster=(num_parts,),
        cluster_names=("part",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="sampling_threshold",
    )
    return kernel(weights, top_k, top_p, min_p)[0]


def _row(weights, top_k, top_p, min_p, threshold, sums, *, part, own_sums, loaded, summed, vocab_size, num_parts):
    row, part_id = lax.axis_index("row"), lax.axis_index("part")
    k, p, least = top_k[row], top_p[row], min_p[row]
    by_k, by_p = (k > 0) & (k < vocab_size), p < 1
    is_first = part_id == 0

    @pl.when(by_k | by_p)
    def _():
        lines = pl.ds(part_id * part.shape[0], part.shape[0])
        plgpu.copy_gmem_to_smem(weights.at[row, lines], part, loaded)  # Past the last line this reads zeros.
        plgpu.barrier_wait(loaded)
        add_up = functools.partial(_add_up, part, own_sums, sums.at[row], summed, part_id, num_parts)

        def search(first_slot, counts, wanted):
            def narrow(i, bits):
                candidates = [bits | (digit << (2 * (_ROUNDS - 1 - i))) for digit in (1, 2, 3)]
                reached = add_up(first_slot + i, candidates, counts=counts)
                for candidate, total in zip(candidates, reached, strict=True):
                    bits = jnp.where(total >= wanted, candidate, bits)
                return bits

            return lambda wants: lax.fori_loop(0, jnp.where(wants, _ROUNDS, 0), narrow, jnp.int32(0))

        floor = search(0, True, k.astype(jnp.float32))(by_k)
        (kept,) = add_up(_ROUNDS, [floor], counts=False)
        nucleus = search(_ROUNDS + 1, False, p * kept)(by_p)

        @pl.when(is_first)
        def _():
            # Mosaic GPU casts the bits of vectors alone.
            found = lax.bitcast_convert_type(jnp.full((_LANES,), jnp.maximum(floor, nucleus)), jnp.float32)
            threshold[row] = jnp.maximum(jnp.max(found), least)

    @pl.when(is_first & ~(by_k | by_p))
    def _():
        threshold[row] = least


def _add_up(part, own_sums, sums, summed, part_id, num_parts, slot, candidates, *, counts):
    """For each threshold, given as its bits, the mass of the row's weights that reach it; or how many do."""

    def step(i, totals):
        x = part[pl.ds(i * _STEP_LINES, _STEP_LINES)]
        bits = lax.bitcast_convert_type(x, jnp.int32)  # orders as x does, which is not negative
        values = jnp.ones_like(x) if counts else x
        return tuple(
            total + jnp.where(bits >= candidate, values, 0.0)
            for total, candidate in zip(totals, candidates, strict=True)
        )

    zeros = jnp.zeros((_STEP_LINES, _LANES), jnp.float32)
    totals = lax.fori_loop(0, part.shape[0] // _STEP_LINES, step, (zeros,) * len(candidates))
    for j, total in enumerate(totals):
        own_sums[j] = jnp.sum(total)
    # A store would not be ordered before the arrival at another block's barrier. The end of a TMA copy is, and what is
    # read after it lies in a line that no block has in its cache yet.
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(own_sums, sums.at[slot, part_id])
    plgpu.wait_smem_to_gmem(0)
    plgpu.barrier_arrive(summed)
    plgpu.barrier_wait(summed)
    # Every block adds in the same order, so that all of them take the same branch.
    return [sum(sums[slot, other, j] for other in range(num_parts)) for j in range(len(candidates))]
