"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sgjax.layers.linear import Weight, value


def rms_norm(x: jax.Array, weight: Weight, eps: float) -> jax.Array:
    """Scales the last axis of x, (..., D), to unit root mean square, times `weight`, (D,), in float32.

    The result has the weight's dtype, which is that of the products to come; x may be a wider residual stream.
    """
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale * value(weight).astype(jnp.float32)).astype(value(weight).dtype)
