"""`paged_prefill` in C++ for CPUs: blocks of queries, each over the keys it sees, packed as it goes."""

from __future__ import annotations

from typing import Any

import jax

from sgjax.kernels.native.attention import attend


def paged_prefill(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    causal: bool = True,
    return_lse: bool = False,
) -> Any:
    """See `api.PagedPrefill`."""
    rows = (page_table, kv_lens, q_starts)
    options: dict[str, Any] = dict(scale=scale, window=window, soft_cap=soft_cap, sinks=sinks, return_lse=return_lse)
    return attend("sgjax_paged_prefill", q, k_cache, v_cache, *rows, causal=causal, **options)


paged_prefill.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]
