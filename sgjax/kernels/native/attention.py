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

from sgjax.kernels.lse import add_sinks
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
    sinks: jax.Array | None,
    return_lse: bool,
    **attributes: Any,
) -> Any:
    """Calls `target` on operands as in `paged_decode.api` and `paged_prefill.api`; `rows` are the int32 ones.

    Products are in the caches' dtype with float32 sums, as in `xla.py`. `attributes`: others that the target takes.

    Raises:
      NotImplementedError: the library cannot be built here, or another dtype than bfloat16 or float32.
    """
    reason = unavailable()
    if reason is not None:
        raise NotImplementedError(reason)
    if k_cache.dtype not in _DTYPES or v_cache.dtype != k_cache.dtype or q.dtype not in _DTYPES:
        raise NotImplementedError(f"q {q.dtype} with caches {k_cache.dtype} and {v_cache.dtype}")
    attributes |= dict(scale=np.float32(scale), window=np.int64(window or 0), soft_cap=np.float32(soft_cap or 0))

    def call(q: jax.Array, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
        results = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
        out, lse = jax.ffi.ffi_call(target, results)(q, *operands, **attributes)
        return out, lse

    out, lse = _split_by_kv_head(call, len(rows))(q.astype(k_cache.dtype), k_cache, v_cache, *rows)
    if sinks is not None:
        out, lse = add_sinks(out.astype(jnp.float32), lse, sinks)
    out = out.astype(q.dtype)
    return (out, lse) if return_lse else out


def _split_by_kv_head(
    call: Callable[..., tuple[jax.Array, jax.Array]], num_rows: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Lets XLA split the call over devices along K. Without that it would gather the caches on every device."""

    def partition(mesh: Any, _: Any, results: Any) -> Any:
        heads = (*results[0].sharding.spec, None, None)[1]
        q, cache = PartitionSpec(None, heads), PartitionSpec(heads)
        operands = (q, cache, cache, *(PartitionSpec(),) * num_rows)
        shardings = tuple(NamedSharding(mesh, spec) for spec in operands)
        return mesh, call, (NamedSharding(mesh, q),) * 2, shardings

    rows = ("s p", "s", "e")[:num_rows]
    split = custom_partitioning(call)
    split.def_partition(
        partition=partition,
        sharding_rule=f"t k g h, k n c h, k n c h, {', '.join(rows)} -> t k g h, t k g",
        need_replication_factors=tuple("tghncspe"[: 5 + num_rows]),
    )
    return split
