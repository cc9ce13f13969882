"""`sampling_threshold` as it is meant: sort the row."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sampling_threshold(weights: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """See `api.SamplingThreshold`."""

    def one_row(weights, top_k, top_p, min_p):
        descending = jnp.sort(weights, descending=True)
        by_k = (top_k > 0) & (top_k < len(weights))
        floor = jnp.where(by_k, descending[top_k - 1], 0)
        mass = jnp.cumsum(jnp.where(descending >= floor, descending, 0))
        last = jnp.argmax(mass >= top_p * mass[-1])
        return jnp.maximum(jnp.where(top_p < 1, descending[last], floor), min_p)

    return jax.vmap(one_row)(weights, top_k, top_p, min_p)
