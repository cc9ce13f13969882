"""Contract of `write_kv`: store the keys and values of new tokens in the paged cache."""

from __future__ import annotations

from typing import Protocol

import jax


class WriteKV(Protocol):
    """Returns the caches with row `t` of `k` and `v` stored at slot `kv_index[t]`.

    Args:
      k_cache, v_cache: (K, N, page, H). Donate them: the update is then in place.
      k, v: (T, K, H); cast to the caches' dtype.
      kv_index: int32 (T,), `page_id * page + offset`. Anything outside [0, N * page) is dropped (padding tokens).
        Indices within range are distinct; with duplicates it is unspecified which token wins.

    Every other element of the caches keeps its value.
    """

    def __call__(
        self, k_cache: jax.Array, v_cache: jax.Array, k: jax.Array, v: jax.Array, kv_index: jax.Array
    ) -> tuple[jax.Array, jax.Array]: ...
