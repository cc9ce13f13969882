"""Contract of `paged_decode`: attention of one new token per row over its pages."""

from __future__ import annotations

from typing import Any, Protocol

import jax


class PagedDecode(Protocol):
    """Attention output of the newest token of every row.

    Args:
      q: (S, K, G, H), one query per row: the token at position `kv_lens[s] - 1`.
      k_cache, v_cache: (K, N, page, H), in q's dtype or in float8_e4m3fn, whose numbers are taken as they are: a scale
        of the keys belongs into `scale` or q, one of the values onto the result. Pages that no row uses, and slots of
        a page past the row's length, may hold anything, NaN included; no output depends on them.
      page_table: int32 (S, P), the pages of row s in order. Entries past ceil(kv_lens[s] / page) are arbitrary but in
        [0, N).
      kv_lens: int32 (S,), tokens of row s in the cache, the new one included; at most P * page. 0 is a padding row.
      scale: factor on the scores. `head_dim ** -0.5` as a rule.
      window: static. The query at position p sees the keys in (p - window, p]. None sees all.
      soft_cap: static. Scores become `soft_cap * tanh(scores / soft_cap)`, after the scale. None leaves them.
      sinks: float32 (K, G), one more score per head that takes its share of the softmax and has no value (attention
        sinks, Xiao et al. 2023, as gpt-oss learns them). None: no sinks.
      return_lse: static.

    Returns:
      (S, K, G, H) in q's dtype; zeros in padding rows. Softmax and sums are float32. With `return_lse` also float32
      (S, K, G): the natural logarithm of the sum of the scores' exponentials, sinks included; -inf in padding rows. By
      it results over parts of a row are joined (`sgjax.kernels.lse`).
    """

    def __call__(
        self,
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
    ) -> Any: ...
