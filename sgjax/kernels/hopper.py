"""What the kernels for Hopper GPUs have in common."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import config as jax_config
from jax.experimental.pallas import mosaic_gpu as plgpu

SHARED_MEMORY_BYTES = 233472  # Of a multiprocessor; 1 KB of it is lost to every program.
LOG2_E = math.log2(math.e)
MIN_SCORE = -1e30  # Finite, so that where no key has been seen yet exp2(-inf - MIN_SCORE) is 0 and not NaN.


def check_device() -> None:
    """Raises `NotImplementedError` on GPUs that are not Hopper's."""
    # A CPU has no compute capability: there the kernels are interpreted, or compiled for a GPU elsewhere.
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if capability not in (None, "9.0"):
        raise NotImplementedError(f"the GPU has compute capability {capability}, and this kernel takes 9.0 (Hopper)")


def num_multiprocessors() -> int:
    """Of the GPU; without one, of an H100 with SXM5 (one for PCIe has 114)."""
    return getattr(jax.local_devices()[0], "core_count", 132)


def check_attention(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array) -> None:
    """Raises `NotImplementedError` that names what the attention kernels cannot do with these operands."""
    check_device()
    if q.dtype != jnp.bfloat16:
        raise NotImplementedError(f"q is {q.dtype}, and this kernel takes bfloat16 alone")
    if k_cache.dtype not in (jnp.bfloat16, jnp.float8_e4m3fn):
        raise NotImplementedError(f"k_cache is {k_cache.dtype}, and this kernel takes bfloat16 and float8_e4m3fn")
    if v_cache.dtype != k_cache.dtype:
        raise NotImplementedError(f"k_cache is {k_cache.dtype} and v_cache {v_cache.dtype}, which must be the same")
    for name, value, known in (
        ("head_dim", q.shape[3], (64, 80, 96, 128, 256)),
        ("page_size", k_cache.shape[2], (16, 32, 64, 128)),
    ):
        if value not in known:
            raise NotImplementedError(f"{name} is {value}, and this kernel takes {', '.join(map(str, known))}")


def is_interpreted() -> bool:
    """Whether a kernel is traced for Pallas' interpreter, which knows less than the compiler. JAX does not say so."""
    mode = getattr(jax_config, "pallas_tpu_interpret_mode_context_manager", None)
    return mode is not None and mode.value is not None


def swizzle_bytes(axis_size: int, dtype: Any) -> int:
    """The widest swizzle that `wgmma` allows for operands whose last axis has this many elements in shared memory."""
    axis_bytes = axis_size * jnp.dtype(dtype).itemsize
    return next(width for width in (128, 64, 32) if axis_bytes % width == 0)


def swizzled_smem(shape: tuple[int, ...], dtype: Any, swizzle: int) -> Any:
    """Shared memory in the layout that `wgmma` reads; both operands must have the same swizzle, in bytes."""
    tiling = plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))  # type: ignore[abstract]


def capped_scores(products: jax.Array, scale: float, soft_cap: float | None) -> tuple[jax.Array, float]:
    """Scores before masking, and what they are still to be multiplied by to be in units of log 2."""
    if soft_cap is None:
        return products, scale * LOG2_E
    # tanh through exp2, whose fast instruction is exact to 2^-22; that of tanh, to 2^-11, is too coarse.
    return 1 - 2 / (1 + jnp.exp2(products * (2 * LOG2_E * scale / soft_cap))), soft_cap * LOG2_E


def sink_scores(sinks: jax.Array) -> jax.Array:
    """Sinks in units of log 2. Infinite ones would give NaN."""
    return jnp.minimum(jnp.maximum(sinks * LOG2_E, MIN_SCORE), -MIN_SCORE)
