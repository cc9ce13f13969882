"""What the kernels for Hopper GPUs have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax._src import config as jax_config
from jax.experimental.pallas import mosaic_gpu as plgpu

SHARED_MEMORY_BYTES = 233472  # Of a multiprocessor; 1 KB of it is lost to every program.


def check_device() -> None:
    """Raises `NotImplementedError` on GPUs that are not Hopper's."""
    # A CPU has no compute capability: there the kernels are interpreted, or compiled for a GPU elsewhere.
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if capability not in (None, "9.0"):
        raise NotImplementedError(f"the GPU has compute capability {capability}, and this kernel takes 9.0 (Hopper)")


def num_multiprocessors() -> int:
    """Of the GPU; without one, of an H100 with SXM5 (one for PCIe has 114)."""
    return getattr(jax.local_devices()[0], "core_count", 132)


def check_supported(**arrays: jax.Array) -> None:
    """Raises `NotImplementedError` that names what the kernels cannot do with arrays of shape (..., head_dim)."""
    check_device()
    for name, array in arrays.items():
        if array.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {array.dtype}, and this kernel takes bfloat16 alone")
        if array.shape[-1] not in (64, 128):
            raise NotImplementedError(f"head_dim is {array.shape[-1]}, and this kernel takes 64 and 128")


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
