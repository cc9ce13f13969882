"""`paged_decode` in C++ for CPUs: reads the pages in place, in time that the rows' lengths alone decide."""

from __future__ import annotations

from typing import Any

import jax

from sgjax.kernels.native.attention import attend


def paged_decode(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    return_lse: bool = False,
) -> Any:
    """See `api.PagedDecode`."""
    options: dict[str, Any] = dict(scale=scale, window=window, soft_cap=soft_cap, sinks=sinks, return_lse=return_lse)
    return attend("sgjax_paged_decode", q, k_cache, v_cache, page_table, kv_lens, **options)


paged_decode.supports_cascade = True  # pyright: ignore[reportFunctionMemberAccess]
