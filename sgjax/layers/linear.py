"""Matrix products with the checkpoint's weight orientation, (out, in)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Weight = jax.Array | nnx.Param
"""A parameter as models hold it, or its bare value. Quantised weights will join here."""


def value(w: Weight) -> jax.Array:
    """The array behind a parameter."""
    return w.get_value() if isinstance(w, nnx.Variable) else w


def linear(
    x: jax.Array, w: Weight, b: Weight | None = None, *, num_in: int = 1, dtype: DTypeLike | None = None
) -> jax.Array:
    """`x @ w.T + b`, where inputs and outputs may span several axes.

    Args:
      x: (T, *in).
      w: (*out, *in); the last `num_in` axes are contracted with x's.
      b: (*out).
      dtype: of the result; None is x's.

    Returns:
      (T, *out). Sums are float32 whatever the operands: on a CPU only that form reaches the fast bfloat16 products.
    """
    w = value(w)
    out_axes = w.shape[: w.ndim - num_in]
    # One plain (T, in) by (out, in) product. XLA on a CPU would transpose the weights of any other form. Folding axes
    # is free, and where only the first of them is sharded it needs no communication either.
    x2, w2 = x.reshape(x.shape[0], -1), w.reshape(math.prod(out_axes), -1)
    y = jax.lax.dot_general(x2, w2, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    y = y.reshape(x.shape[0], *out_axes)
    if b is not None:
        y = y + value(b).astype(jnp.float32)
    return y.astype(dtype or x.dtype)
