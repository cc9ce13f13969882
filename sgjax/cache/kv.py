"""The KV cache on the device: per layer a pair of arrays (K, N, page, H), donated to every step and written in place.

Axes: K KV heads, N pages, `page` tokens of a page, H head size. One page of one head is one contiguous tile, K is first
because tensor parallelism divides it, and this order was also the fastest to gather on a CPU. Layers are separate
arrays: one stacked array was copied whole at every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sgjax.types import KVSpec

KVCache = list[tuple[jax.Array, jax.Array]]


def kv_dtype(name: str) -> str:
    """The array dtype of a `kv_cache_dtype` setting."""
    return {"fp8_e4m3": "float8_e4m3fn"}.get(name, name)


def kv_shape(spec: KVSpec, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
    """The shape (K, N, page, H) of one layer's keys, and of its values."""
    return spec.num_kv_heads, num_pages, page_size, spec.head_dim


def make_kv_cache(
    specs: Sequence[KVSpec],
    num_pages: int,
    page_size: int,
    dtype: DTypeLike,
    sharding: jax.sharding.Sharding | None = None,
) -> KVCache:
    """Allocates the pool: one (keys, values) pair of zeros per layer, distinct buffers that can all be donated.

    Args:
      sharding: how each (K, N, page, H) array lies on the devices; every device makes its own part.
    """

    def zeros(spec: KVSpec) -> jax.Array:
        return jnp.zeros(kv_shape(spec, num_pages, page_size), dtype, device=sharding)

    return [(zeros(spec), zeros(spec)) for spec in specs]


def kv_bytes_per_page(specs: Sequence[KVSpec], page_size: int, dtype: DTypeLike) -> int:
    """Bytes that one page takes in all layers, keys and values together."""
    per_layer = (math.prod(kv_shape(spec, 1, page_size)) for spec in specs)
    return 2 * sum(per_layer) * jnp.dtype(dtype).itemsize
