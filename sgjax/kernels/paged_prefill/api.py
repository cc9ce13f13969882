"""Contract of `paged_prefill`: causal attention of a ragged batch of new tokens over their rows' pages."""

from __future__ import annotations

from typing import Any, Protocol

import jax


class PagedPrefill(Protocol):
    """Attention output of every new token of every row.

    Args:
      q: (T, K, G, H), the rows' queries one row after the other.
      k_cache, v_cache: (K, N, page, H); already holds the new tokens. Pages that no row uses, and slots of a page past
        the row's length, may hold anything, NaN included; no output depends on them.
      page_table: int32 (S, P), the pages of row s in order. Entries past ceil(kv_lens[s] / page) are arbitrary but in
        [0, N).
      kv_lens: int32 (S,), tokens of row s in the cache; at most P * page. 0 is a padding row.
      q_starts: int32 (S + 1,), not decreasing. Row s's queries are q[q_starts[s]:q_starts[s + 1]] and stand at the last
        positions of its kv_lens[s]. A row may have none.
      scale, window, soft_cap, sinks: as in `paged_decode.api.PagedDecode`.
      causal: static. False: a row's queries are none of its tokens, there may be any number of them, and each sees all
        of the row's keys; such a call has no window. So tokens of many sequences attend to a prefix that they share.
      return_lse: static.

    Returns:
      (T, K, G, H) in q's dtype; zeros for tokens outside every row or of a row without keys. Softmax and sums are
      float32. With `return_lse` also float32 (T, K, G), as in `paged_decode.api.PagedDecode`; -inf where zeros are.
    """

    def __call__(
        self,
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
    ) -> Any: ...
