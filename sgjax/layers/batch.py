"""What one forward pass sees of the batch. Axis letters: `docs/glossary.md`."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedPrefixes:
    """Groups of decoding rows that begin with the same pages; C of them, those not used empty.

    Attributes:
      starts: int32 (C + 1,), not decreasing, from 0: group c is rows [starts[c], starts[c+1]). Rows past the last group
        share nothing.
      lens: int32 (C,), tokens that all rows of the group share: whole pages, and fewer than any of the rows holds.
    """

    starts: jax.Array
    lens: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForwardBatch:
    """A ragged batch of T tokens in S rows, padded to a bucket.

    Attributes:
      token_ids: int32 (T,).
      positions: int32 (T,), position of each token in its sequence.
      kv_index: int32 (T,), `page * page_size + offset` where the token's KV goes; out of range is dropped (padding).
      q_starts: int32 (S + 1,), row s owns tokens [q_starts[s], q_starts[s+1]); tokens past the last are padding.
      kv_lens: int32 (S,), tokens of row s in the cache after this step's are written; 0 is a padding row.
      page_table: int32 (S, P), the pages of row s in order; entries past its length are arbitrary but in range.
      logit_index: int32 (S,), the token whose hidden state row s wants logits of.
      decode: static. True: every row is one token, T == S, q_starts and logit_index are arange.
      shared: of a decode step; attention reads each shared prefix once. None reads every row for itself.
    """

    token_ids: jax.Array
    positions: jax.Array
    kv_index: jax.Array
    q_starts: jax.Array
    kv_lens: jax.Array
    page_table: jax.Array
    logit_index: jax.Array
    decode: bool = dataclasses.field(metadata={"static": True})
    shared: SharedPrefixes | None = None
