"""Calls of the native kernels."""

from __future__ import annotations

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np

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
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(q.shape, k_cache.dtype))
    out = call(
        q.astype(k_cache.dtype),
        k_cache,
        v_cache,
        *rows,
        scale=np.float32(scale),
        window=np.int64(window or 0),
        soft_cap=np.float32(soft_cap or 0),
    )
    return out.astype(q.dtype)
