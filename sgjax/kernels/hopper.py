"""What the kernels for Hopper GPUs have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def check_supported(**arrays: jax.Array) -> None:
    """Raises `NotImplementedError` that names what the kernels cannot do with arrays of shape (..., head_dim)."""
    # A CPU has no compute capability: there the kernels are interpreted, or compiled for a GPU elsewhere.
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if capability not in (None, "9.0"):
        raise NotImplementedError(f"the GPU has compute capability {capability}, and this kernel takes 9.0 (Hopper)")
    for name, array in arrays.items():
        if array.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {array.dtype}, and this kernel takes bfloat16 alone")
        if array.shape[-1] not in (64, 128):
            raise NotImplementedError(f"head_dim is {array.shape[-1]}, and this kernel takes 64 and 128")
