"""Contract of `sampling_threshold`: which tokens top_k, top_p and min_p leave to be drawn."""

from __future__ import annotations

from typing import Protocol

import jax


class SamplingThreshold(Protocol):
    """The smallest weight that a row's filters keep: what reaches it is kept, ties with the last one too.

    The order is SGLang's: top_k, then top_p of the mass that top_k kept, then min_p relative to the largest weight.

    Args:
      weights: float32 (S, V) in [0, 1], the largest of a row 1: probabilities relative to the likeliest token's.
      top_k: int32 (S,); below 1, or V and above, is off.
      top_p: float32 (S,) in (0, 1]; 1 is off.
      min_p: float32 (S,) in [0, 1]; 0 is off.

    Returns:
      float32 (S,): the largest threshold whose tokens satisfy the filters, which is a weight of the row or `min_p`; 0
      where all filters are off. Masses are float32 sums, in any order.
    """

    def __call__(self, weights: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array: ...
