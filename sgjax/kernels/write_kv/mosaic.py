"""`write_kv` for Hopper GPUs: new tokens through shared memory, one TMA copy per token to its slot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from sgjax.kernels.hopper import check_device

_BLOCK_TOKENS = 8


def write_kv(
    k_cache: jax.Array, v_cache: jax.Array, k: jax.Array, v: jax.Array, kv_index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `api.WriteKV`. Raises `NotImplementedError` for what the kernel does not do."""
    check_device()
    num_kv_heads, _, _, head_dim = k_cache.shape
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {cache.dtype}, and this kernel takes bfloat16 alone")
    if head_dim not in (64, 128):
        raise NotImplementedError(f"head_dim is {head_dim}, and this kernel takes 64 and 128")
    num_tokens = k.shape[0]
    num_blocks = pl.cdiv(num_tokens, _BLOCK_TOKENS)
    kv_index = jnp.pad(kv_index, (0, num_blocks * _BLOCK_TOKENS - num_tokens), constant_values=-1)

    # Refs that a kernel writes are its inputs and outputs at once: XLA updates donated caches in place.
    k_ref, v_ref = jax.new_ref(k_cache), jax.new_ref(v_cache)
    new_smem = plgpu.SMEM((_BLOCK_TOKENS, num_kv_heads, head_dim), k_cache.dtype)
    kernel = plgpu.kernel(
        _write_block,
        scratch_types={"k_smem": new_smem, "v_smem": new_smem, "barrier": plgpu.Barrier(num_arrivals=2)},
        grid=(num_blocks,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="write_kv",
    )
    kernel(k_ref, v_ref, k.astype(k_cache.dtype), v.astype(v_cache.dtype), kv_index)
    return jax.freeze(k_ref), jax.freeze(v_ref)


def _write_block(k_cache, v_cache, k, v, kv_index, *, k_smem, v_smem, barrier):
    _, num_pages, page_size, _ = k_cache.shape
    first_token = lax.axis_index("block") * _BLOCK_TOKENS
    tokens = pl.ds(first_token, _BLOCK_TOKENS)
    plgpu.copy_gmem_to_smem(k.at[tokens], k_smem, barrier)  # Past the last token this reads zeros, not written.
    plgpu.copy_gmem_to_smem(v.at[tokens], v_smem, barrier)
    plgpu.barrier_wait(barrier)
    for i in range(_BLOCK_TOKENS):
        index = kv_index[first_token + i]

        @pl.when((index >= 0) & (index < num_pages * page_size))
        def _(i=i, index=index):
            page_id, offset = lax.div(index, page_size), lax.rem(index, page_size)
            plgpu.copy_smem_to_gmem(k_smem.at[i], k_cache.at[:, page_id, offset])
            plgpu.copy_smem_to_gmem(v_smem.at[i], v_cache.at[:, page_id, offset])

    plgpu.wait_smem_to_gmem(0)
