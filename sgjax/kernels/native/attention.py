"""Calls of the native kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from sgjax.kernels.native.build import unavailable

_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float32"))


def attend(
    target: str,
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    *rows: jax.Array,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """Calls `target` on operands as in `paged_decode.api` and `paged_prefill.api`; `rows` are the int32 ones.

    Products are in the caches' dtype with float32 sums, as in `xla.py`.

    Raises:
      NotImplementedError: the library cannot be built here, or another dtype than bfloat16 or float32.
    """
    reason = unavailable()
    if reason is not None:
        raise NotImplementedError(reason)
    if k_cache.dtype not in _DTYPES or v_cache.dtype != k_cache.dtype or q.dtype not in _DTYPES:
        raise NotImplementedError(f"q {q.dtype} with caches {k_cache.dtype} and {v_cache.dtype}")
    attributes = dict(scale=np.float32(scale), window=np.int64(window or 0), soft_cap=np.float32(soft_cap or 0))

    def call(q: jax.Array, *operands: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(q.shape, q.dtype))(q, *operands, **attributes)

    out = _split_by_kv_head(call, len(rows))(q.astype(k_cache.dtype), k_cache, v_cache, *rows)
    return out.astype(q.dtype)


def _split_by_kv_head(call: Callable[..., jax.Array], num_rows: int) -> Callable[..., jax.Array]:
    """Lets XLA split the call over devices along K. Without that it would gather the caches on every device."""

    def partition(mesh: Any, _: Any, result: Any) -> Any:
        heads = (*result.sharding.spec, None, None)[1]
        q, cache = PartitionSpec(None, heads), PartitionSpec(heads)
        operands = (q, cache, cache, *(PartitionSpec(),) * num_rows)
        return mesh, call, NamedSharding(mesh, q), tuple(NamedSharding(mesh, spec) for spec in operands)

    rows = ("s p", "s", "e")[:num_rows]
    split = custom_partitioning(call)
    split.def_partition(
        partition=partition,
        sharding_rule=f"t k g h, k n c h, k n c h, {', '.join(rows)} -> t k g h",
        need_replication_factors=tuple("tghncspe"[: 5 + num_rows]),
    )
    return split
