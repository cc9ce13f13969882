"""`write_kv` as it is meant: one token after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def write_kv(
    k_cache: jax.Array, v_cache: jax.Array, k: jax.Array, v: jax.Array, kv_index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `api.WriteKV`."""
    _, num_pages, page_size, _ = k_cache.shape

    def write(t, caches):
        page_id, offset = jnp.divmod(kv_index[t], page_size)
        in_range = (kv_index[t] >= 0) & (kv_index[t] < num_pages * page_size)
        return tuple(
            jnp.where(in_range, cache.at[:, page_id, offset].set(new[t].astype(cache.dtype)), cache)
            for cache, new in zip(caches, (k, v), strict=True)
        )

    return jax.lax.fori_loop(0, k.shape[0], write, (k_cache, v_cache))
