"""Attention results that come with their log-sum-exp, which says how much of a softmax they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def merge(out_a: jax.Array, lse_a: jax.Array, out_b: jax.Array, lse_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over two disjoint sets of keys, from the results over each.

    Args:
      out_a, out_b: (..., H). lse_a, lse_b: float32 (...); -inf where a result saw no key.

    Returns:
      float32 (..., H) and (...).
    """
    lse = jnp.logaddexp(lse_a, lse_b)
    finite = jnp.where(lse == -jnp.inf, 0, lse)  # -inf - -inf is NaN.
    weight_a, weight_b = (jnp.exp(part - finite)[..., None] for part in (lse_a, lse_b))
    return weight_a * out_a.astype(jnp.float32) + weight_b * out_b.astype(jnp.float32), lse


def merge_parts(outs: jax.Array, lses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`merge` of any number of results, (parts, ..., H) and float32 (parts, ...)."""
    lse = jax.nn.logsumexp(lses, axis=0)
    weights = jnp.exp(lses - jnp.where(lse == -jnp.inf, 0, lse))  # -inf - -inf is NaN.
    return jnp.sum(weights[..., None] * outs.astype(jnp.float32), axis=0), lse


def add_sinks(out: jax.Array, lse: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives `sinks`, float32 broadcastable to `lse`, their share of the softmax. Rows that saw no key stay as they are.

    Args:
      out: float32 (..., H). lse: float32 (...).
    """
    saw_keys = lse > -jnp.inf
    share = jnp.where(saw_keys, jax.nn.sigmoid(lse - sinks), 1)
    return out * share[..., None], jnp.where(saw_keys, jnp.logaddexp(lse, sinks), lse)
