"""The jitted functions of a step. Pure; compiled ahead for every bucket by `compiler.py`.

A step is two calls: `forward_step` (the model) and `sample_step` (one token per row). They are apart so that the many
shapes of the first need not be compiled for each variant of the second, and so that grammars' masks can be filled on
the host in between (docs/adr/0001-two-calls-a-step.md); then `mask_step` comes between them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from sgjax.kernels import Ops
from sgjax.layers.batch import ForwardBatch
from sgjax.layers.sampling import (
    Logprobs,
    PenaltyRows,
    SamplingRows,
    TokenCounts,
    adjust,
    apply_mask,
    argmax,
    prompt_logprobs,
    sample,
    token_logprobs,
)
from sgjax.models.forward import forward, logits
from sgjax.types import MAX_TOP_LOGPROBS


def forward_step(
    params: Any,
    cache: list[Any],
    last_token: jax.Array,
    batch: ForwardBatch,
    slots: jax.Array,
    *,
    graphdef: Any,
    ops: Ops,
) -> tuple[list[Any], jax.Array, jax.Array]:
    """Runs the model over one packed step.

    Args:
      cache: donated, written in place. last_token: int32 (slots,), the newest token of every running sequence, read by
        decode steps through `slots` int32 (S,).

    Returns:
      cache, logits float32 (S, V), hidden (T, D).
    """
    if batch.decode:
        token_ids = last_token.at[slots].get(mode="fill", fill_value=0)
        batch = dataclasses.replace(batch, token_ids=token_ids)
    hidden, cache = forward(params, batch, cache, graphdef=graphdef, ops=ops)
    wanted = hidden if batch.decode else hidden[batch.logit_index]
    return cache, logits(params, wanted, graphdef=graphdef), hidden


def mask_step(row_logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits (S, V) without the tokens whose bit in `mask`, int32 (S, ceil(V/32)), is 0: they become -inf."""
    return apply_mask(row_logits, mask)


def sample_step(
    row_logits: jax.Array,
    raw_logits: jax.Array | None,
    last_token: jax.Array,
    slots: jax.Array,
    rows: SamplingRows | None,
    penalties: PenaltyRows | None,
    counts: TokenCounts | None,
    asked_ids: jax.Array | None,
    *,
    ops: Ops,
) -> tuple[jax.Array, jax.Array, TokenCounts | None, Logprobs | None]:
    """Draws one token a row and keeps it on the device.

    Args:
      row_logits: float32 (S, V), masked or not. raw_logits: those of the model; None like `asked_ids`.
      last_token: int32 (slots,), donated. slots: int32 (S,); out of range is dropped.
      rows: None when every row is greedy. penalties: with `counts` (donated), None when no row has any.
      asked_ids: int32 (S, A), None when no row wants log-probabilities.

    Returns:
      last_token, tokens int32 (S,), counts, log-probabilities of the raw distribution. In this order: a donated array
      becomes the first result of its shape, and with as many slots as rows the tokens are of `last_token`'s.
    """
    adjusted = row_logits
    if penalties is not None:
        assert counts is not None
        adjusted = adjust(row_logits, penalties, counts.rows(slots))
    tokens = argmax(adjusted) if rows is None else sample(adjusted, rows, ops.sampling_threshold)
    last_token = last_token.at[slots].set(tokens, mode="drop")
    if counts is not None:
        counts = counts.add(slots, tokens)
    found = None
    if asked_ids is not None:
        assert raw_logits is not None
        found = token_logprobs(raw_logits, tokens, asked_ids, MAX_TOP_LOGPROBS)
    return last_token, tokens, counts, found


def prompt_step(params: Any, hidden: jax.Array, targets: jax.Array, asked_ids: jax.Array, *, graphdef: Any) -> Logprobs:
    """Log-probabilities that hidden states (T, D) give to `targets` int32 (T,) and `asked_ids` int32 (T, A)."""
    return prompt_logprobs(
        hidden, lambda block: logits(params, block, graphdef=graphdef), targets, asked_ids, MAX_TOP_LOGPROBS
    )


def counts_step(counts: TokenCounts, slot: jax.Array, output_counts: jax.Array, in_prompt: jax.Array) -> TokenCounts:
    """Sets the token counts of one slot; `counts` is donated. int16 (V,) and bool (V,)."""
    return counts.set_slot(slot, output_counts, in_prompt)
