"""The two functions that every model is used through. Pure; jit them, with `graphdef` and `ops` static."""

from __future__ import annotations

import jax
from flax import nnx

from sgjax.kernels import Ops
from sgjax.layers.attention import LayerCache
from sgjax.layers.batch import ForwardBatch
from sgjax.models.spec import Graph, Params


def forward(
    params: Params, batch: ForwardBatch, cache: list[LayerCache], *, graphdef: Graph, ops: Ops
) -> tuple[jax.Array, list[LayerCache]]:
    """Runs a batch through the model.

    Args:
      cache: one (keys, values) per layer, each (K, N, page, H). Donate it: pages are then written in place.

    Returns:
      Hidden states (T, D) after the final norm, and the cache with the batch's tokens in it.
    """
    return nnx.merge(graphdef, params)(batch, cache, ops)


def logits(params: Params, hidden: jax.Array, *, graphdef: Graph) -> jax.Array:
    """float32 (n, V) of hidden states (n, D): pick the tokens you want logits of first."""
    return nnx.merge(graphdef, params).logits(hidden)
