"""`sampling_threshold` by bisection over the bits of a float, without a sort (docs/adr/0005-filter-without-a-sort.md).

The vocabulary is looked at in blocks of `_BLOCK` ids. A threshold is searched among the blocks with the largest maxima,
and over the whole row only where those do not settle it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 32
_CANDIDATE_BLOCKS = 256
_ROWS_AT_ONCE = 8
_FLOAT_BITS = 30  # of a float32 in [0, 1]


def sampling_threshold(weights: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """See `api.SamplingThreshold`."""
    by_k, by_p = (top_k > 0) & (top_k < weights.shape[1]), top_p < 1

    def search() -> jax.Array:
        total = weights.sum(-1)
        blocks = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % _BLOCK))).reshape(len(weights), -1, _BLOCK)
        if blocks.shape[1] <= _CANDIDATE_BLOCKS:
            return _search(weights, total, top_k, top_p, by_k, by_p)[1]
        maxima, index = lax.top_k(blocks.max(-1), _CANDIDATE_BLOCKS)
        candidates = jnp.take_along_axis(blocks, index[:, :, None], 1).reshape(len(weights), -1)
        floor, found = _search(candidates, total, top_k, top_p, by_k, by_p)
        # No weight of the other blocks exceeds the least of these maxima, so what lies above it was all there. The
        # nucleus of what top_k kept is settled only if that was.
        settled = jnp.where(by_k, floor, found) > maxima.min(-1)
        return _search_pending((weights, total, top_k, top_p, by_k, by_p), found, (by_k | by_p) & ~settled)

    unfiltered = jnp.zeros(len(weights), weights.dtype)
    return jnp.maximum(lax.cond((by_k | by_p).any(), search, lambda: unfiltered), min_p)


def _search(
    weights: jax.Array, total: jax.Array, top_k: jax.Array, top_p: jax.Array, by_k: jax.Array, by_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The threshold of top_k, and that with top_p of what top_k keeps. `total` is the mass of the whole row."""
    unfiltered = jnp.zeros_like(total)
    k = top_k.astype(weights.dtype)
    floor = lax.cond(by_k.any(), lambda: jnp.where(by_k, _bisect(weights, 1.0, k), 0), lambda: unfiltered)

    def nucleus() -> jax.Array:
        kept = jnp.where(by_k, _mass(weights, weights, floor), total)
        return jnp.where(by_p, _bisect(weights, weights, top_p * kept), 0)

    return floor, jnp.maximum(floor, lax.cond(by_p.any(), nucleus, lambda: unfiltered))


def _search_pending(of_rows: tuple[jax.Array, ...], found: jax.Array, pending: jax.Array) -> jax.Array:
    """Replaces `found` by a search of the whole row where it is `pending`, a few rows at a time: mostly few are.

    `of_rows` are the arguments of `_search`.
    """
    num_rows = min(_ROWS_AT_ONCE, len(found))

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found, pending = state
        picked = lax.top_k(pending.astype(jnp.int32), num_rows)[1]
        searched = _search(*(x[picked] for x in of_rows))[1]
        found = found.at[picked].set(jnp.where(pending[picked], searched, found[picked]))
        return found, pending.at[picked].set(False)

    return lax.while_loop(lambda state: state[1].any(), step, (found, pending))[0]


def _mass(weights: jax.Array, values: jax.Array | float, threshold: jax.Array) -> jax.Array:
    """Sum of the values whose weights reach the threshold."""
    return jnp.where(weights >= threshold[:, None], values, 0).sum(-1)


def _bisect(weights: jax.Array, values: jax.Array | float, wanted: jax.Array) -> jax.Array:
    """The largest threshold with `_mass` of at least `wanted`, exactly.

    The bits of non-negative floats order as integers, so the threshold is built from its highest bit down. With a value
    of 1 it is the k-th largest weight (float32 counts are exact far beyond any vocabulary).
    """

    def step(i: jax.Array, bits: jax.Array) -> jax.Array:
        candidate = bits | (1 << (_FLOAT_BITS - 1 - i))
        mass = _mass(weights, values, lax.bitcast_convert_type(candidate, jnp.float32))
        return jnp.where(mass >= wanted, candidate, bits)

    bits = lax.fori_loop(0, _FLOAT_BITS, step, jnp.zeros(len(weights), jnp.int32))
    return lax.bitcast_convert_type(bits, jnp.float32)
