"""From a host `Batch` to the arrays of one step, padded to a bucket. numpy only.

The packer mirrors, per slot, what does not change from step to step (page table, sampling values), so that packing a
decode step is a handful of vectorised look-ups whatever the number of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sgjax.engine.batch import Batch, Row
from sgjax.engine.buckets import Buckets, bucket
from sgjax.engine.sequence import Sequence, Status
from sgjax.engine.sharing import PrefixSharing, SharedPrefixValues
from sgjax.grammar import fill_masks
from sgjax.types import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKENS, MAX_STOP_TOKENS

MAX_BLOCKED = MAX_STOP_TOKENS + 8  # stop_token_ids and the model's own end-of-sequence ids


@dataclasses.dataclass(slots=True)
class PenaltyValues:
    """numpy twin of `sgjax.layers.sampling.PenaltyRows`."""

    frequency: np.ndarray
    presence: np.ndarray
    repetition: np.ndarray
    bias_ids: np.ndarray
    bias_values: np.ndarray
    blocked_ids: np.ndarray


@dataclasses.dataclass(slots=True)
class SamplingValues:
    """numpy twin of `sgjax.layers.sampling.SamplingRows`."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seed: np.ndarray
    position: np.ndarray


@dataclasses.dataclass(slots=True)
class PackedStep:
    """Arrays of one step. What a feature needs is None when no row of the step uses the feature.

    Attributes:
      token_ids, positions, kv_index, q_starts, kv_lens, page_table, logit_index: as in `ForwardBatch`; the token ids
        of a decode step are unused, since its tokens are on the device.
      shared: of a decode step whose rows share enough.
      slots: int32 (S,), where the row's sampled token goes; out of range for rows that do not sample.
      asked_ids: int32 (S, MAX_LOGPROB_TOKENS) when some row wants log-probabilities.
      mask: int32 (S, ceil(V/32)), bits of the tokens that each row may draw; set by `Packer.add_mask`.
      prompt_targets, prompt_asked: int32 (T,) and (T, MAX_LOGPROB_TOKENS) when some row wants them of its prompt.
      new_counts: sequences with penalties whose token counts are to be set before this step samples.
    """

    decode: bool
    token_ids: np.ndarray
    positions: np.ndarray
    kv_index: np.ndarray
    q_starts: np.ndarray
    kv_lens: np.ndarray
    page_table: np.ndarray
    logit_index: np.ndarray
    slots: np.ndarray
    shared: SharedPrefixValues | None = None
    sampling: SamplingValues | None = None
    penalties: PenaltyValues | None = None
    asked_ids: np.ndarray | None = None
    mask: np.ndarray | None = None
    prompt_targets: np.ndarray | None = None
    prompt_asked: np.ndarray | None = None
    new_counts: list[Sequence] = dataclasses.field(default_factory=list)


class SlotTable:
    """Sampling values by slot, written when a sequence gets its slot, read as whole columns afterwards."""

    def __init__(self, num_slots: int, vocab_size: int):
        self.vocab_size = vocab_size
        self.reals = np.zeros((num_slots, 6), np.float32)  # temperature, top_p, min_p, frequency, presence, repetition
        self.top_k = np.zeros(num_slots, np.int32)
        self.seed = np.zeros((num_slots, 2), np.uint32)
        self.sampled = np.zeros(num_slots, bool)
        self.penalised = np.zeros(num_slots, bool)
        self.logprobs = np.zeros(num_slots, bool)
        self.blocked_until = np.zeros(num_slots, np.int32)
        self.blocked_ids = np.full((num_slots, MAX_BLOCKED), vocab_size, np.int32)
        self.bias_ids = np.full((num_slots, MAX_LOGIT_BIAS), vocab_size, np.int32)
        self.bias_values = np.zeros((num_slots, MAX_LOGIT_BIAS), np.float32)
        self.asked_ids = np.zeros((num_slots, MAX_LOGPROB_TOKENS), np.int32)

    def assign(self, seq: Sequence) -> None:
        """Writes the row of `seq.slot`."""
        p, slot = seq.request.sampling, seq.slot
        penalties = (p.frequency_penalty, p.presence_penalty, p.repetition_penalty)
        self.reals[slot] = (p.temperature, p.top_p, p.min_p, *penalties)
        self.top_k[slot] = p.top_k
        self.seed[slot] = (seed := seq.seed % 2**64) & 0xFFFFFFFF, seed >> 32
        self.sampled[slot] = not p.greedy
        self.penalised[slot] = penalties != (0, 0, 1) or bool(p.logit_bias) or p.min_new_tokens > 0
        self.logprobs[slot] = seq.request.return_logprob
        self.blocked_until[slot] = seq.num_prompt + p.min_new_tokens
        self.blocked_ids[slot] = self.bias_ids[slot] = self.vocab_size
        stop_ids = sorted(seq.stop_ids)[:MAX_BLOCKED]
        self.blocked_ids[slot, : len(stop_ids)] = stop_ids
        bias = p.logit_bias or {}
        self.bias_ids[slot, : len(bias)] = list(bias)
        self.bias_values[slot, : len(bias)] = list(bias.values())
        asked = seq.request.token_ids_logprob
        self.asked_ids[slot, : len(asked)] = asked

    def has_counts(self, slot: int) -> bool:
        """Whether the penalties of this slot depend on the tokens so far."""
        return tuple(self.reals[slot, 3:]) != (0, 0, 1)

    def sampling(self, slots: np.ndarray, positions: np.ndarray) -> SamplingValues:
        reals = self.reals[slots]
        return SamplingValues(
            reals[:, 0], self.top_k[slots], reals[:, 1], reals[:, 2], self.seed[slots], positions.astype(np.int32)
        )

    def penalties(self, slots: np.ndarray, positions: np.ndarray) -> PenaltyValues:
        reals = self.reals[slots]
        blocked = np.where((positions < self.blocked_until[slots])[:, None], self.blocked_ids[slots], self.vocab_size)
        return PenaltyValues(
            reals[:, 3], reals[:, 4], reals[:, 5], self.bias_ids[slots], self.bias_values[slots], blocked
        )


class Packer:
    """Packs batches for one runner. The last mirror row (`max_running`) stands for padding rows.

    Args:
      sharing: finds what rows of a decode step share; None leaves them apart.
      fill_masks: `sgjax.grammar.fill_masks`, or a test's.
    """

    def __init__(
        self,
        buckets: Buckets,
        *,
        max_running: int,
        num_pages: int,
        page_size: int,
        vocab_size: int,
        sharing: PrefixSharing | None = None,
        fill_masks: Callable[[list[tuple[Any, int]], np.ndarray], None] = fill_masks,
    ):
        self._fill_masks = fill_masks
        self._sharing = sharing
        self.buckets = buckets
        self.page_size = page_size
        self.dropped = num_pages * page_size
        self.padding_slot = max_running
        self.table = SlotTable(max_running + 1, vocab_size)
        self._page_table = np.zeros((max_running + 1, buckets.max_pages), np.int32)
        self._num_pages = [0] * (max_running + 1)

    def pack(self, batch: Batch) -> PackedStep:
        """Packs a step. Rows of a decode batch are put in another order where that lets them share reading."""
        return self._pack_decode(batch.rows) if batch.kind == "decode" else self._pack_prefill(batch.rows)

    def add_mask(self, step: PackedStep, batch: Batch) -> None:
        """Fills in what the grammars allow, once the tokens before this step are known to them.

        A row that lost its `sample` since it was packed keeps nothing of what it draws.
        """
        num_rows = len(batch.rows)
        slots = step.slots.copy()  # the launched forward pass may still be reading the other
        slots[:num_rows][[not row.sample for row in batch.rows]] = self.padding_slot
        step.slots = slots
        step.mask = np.full((len(slots), -(-self.table.vocab_size // 32)), -1, np.int32)
        constrained = [
            (row.seq.matcher, i)
            for i, row in enumerate(batch.rows)
            if row.sample and row.seq.matcher is not None and row.seq.status is not Status.FINISHED
        ]
        self._fill_masks(constrained, step.mask)

    def _mirror_pages(self, seq: Sequence) -> None:
        slot, pages = seq.slot, seq.pages
        if seq.pages_changed and self._sharing is not None:
            self._sharing.forget()
        first = 0 if seq.pages_changed else self._num_pages[slot]
        self._page_table[slot, first : len(pages)] = pages[first:]
        self._num_pages[slot] = len(pages)
        seq.pages_changed = False

    def _pack_decode(self, rows: list[Row]) -> PackedStep:
        num_rows = len(rows)
        size = bucket(self.buckets.decode_rows, num_rows)
        mirrored = self._num_pages
        for row in rows:
            seq = row.seq
            if seq.pages_changed or mirrored[seq.slot] != len(seq.pages):
                self._mirror_pages(seq)
        shared = None if self._sharing is None else self._sharing.arrange(rows, self._page_table, size)
        slots = np.full(size, self.padding_slot, np.int32)
        positions = np.zeros(size, np.int32)
        slots[:num_rows] = [row.seq.slot for row in rows]
        positions[:num_rows] = [row.start for row in rows]
        kv_lens = positions + 1
        kv_lens[num_rows:] = 0
        most_pages = self.buckets.max_pages if shared else -(-int(kv_lens.max()) // self.page_size)
        num_pages = bucket(self.buckets.decode_pages, most_pages)
        page_table = self._page_table[slots, :num_pages]
        kv_index = page_table[np.arange(size), positions // self.page_size] * self.page_size
        kv_index += positions % self.page_size
        kv_index[num_rows:] = self.dropped
        step = PackedStep(
            decode=True,
            token_ids=np.zeros(size, np.int32),
            positions=positions,
            kv_index=kv_index,
            q_starts=np.arange(size + 1, dtype=np.int32),
            kv_lens=kv_lens,
            page_table=page_table,
            logit_index=np.arange(size, dtype=np.int32),
            slots=slots,
            shared=shared,
        )
        self._add_sampling(step, slots, kv_lens)
        return step

    def _pack_prefill(self, rows: list[Row]) -> PackedStep:
        num_tokens = sum(row.length for row in rows)
        token_size, size = self.buckets.prefill_shape(num_tokens, len(rows))
        tokens = np.zeros((3, token_size), np.int32)
        token_ids, positions, kv_index = tokens
        kv_index[num_tokens:] = self.dropped
        q_starts = np.full(size + 1, num_tokens, np.int32)
        q_starts[0] = 0
        kv_lens = np.zeros(size, np.int32)
        seq_slots = np.full(size, self.padding_slot, np.int32)
        slots = np.full(size, self.padding_slot, np.int32)
        new_counts = []
        begin = 0
        for i, row in enumerate(rows):
            seq, end = row.seq, begin + row.length
            if seq.pages_changed:  # set at admission, so the slot's values are written for every new owner
                self.table.assign(seq)
            self._mirror_pages(seq)
            at = np.arange(row.start, row.start + row.length, dtype=np.int32)
            token_ids[begin:end] = seq.tokens[row.start : row.start + row.length]
            positions[begin:end] = at
            pages = self._page_table[seq.slot, at // self.page_size]
            kv_index[begin:end] = pages * self.page_size + at % self.page_size
            q_starts[i + 1] = end
            kv_lens[i] = row.start + row.length
            seq_slots[i] = seq.slot
            if row.sample:
                slots[i] = seq.slot
                if self.table.has_counts(seq.slot):
                    new_counts.append(seq)
            begin = end
        step = PackedStep(
            decode=False,
            token_ids=token_ids,
            positions=positions,
            kv_index=kv_index,
            q_starts=q_starts,
            kv_lens=kv_lens,
            page_table=self._page_table[seq_slots],
            logit_index=np.maximum(q_starts[1:] - 1, 0),
            slots=slots,
            new_counts=new_counts,
        )
        self._add_sampling(step, seq_slots, kv_lens)
        self._add_prompt_logprobs(step, rows)
        return step

    def _add_sampling(self, step: PackedStep, slots: np.ndarray, positions: np.ndarray) -> None:
        """`positions`: of the tokens to be drawn."""
        table = self.table
        penalised = table.penalised[slots].any()
        if penalised or table.sampled[slots].any():
            step.sampling = table.sampling(slots, positions)
        if penalised:
            step.penalties = table.penalties(slots, positions)
        if table.logprobs[slots].any():
            step.asked_ids = table.asked_ids[slots]

    def _add_prompt_logprobs(self, step: PackedStep, rows: list[Row]) -> None:
        if all(row.seq.prompt_logprobs is None for row in rows):
            return
        num_tokens = len(step.token_ids)
        step.prompt_targets = np.zeros(num_tokens, np.int32)
        step.prompt_asked = np.zeros((num_tokens, MAX_LOGPROB_TOKENS), np.int32)
        for i, row in enumerate(rows):
            begin = step.q_starts[i]
            following = row.seq.tokens[row.start + 1 : min(row.start + row.length + 1, row.seq.num_tokens)]
            step.prompt_targets[begin : begin + len(following)] = following
            step.prompt_asked[begin : step.q_starts[i + 1]] = self.table.asked_ids[row.seq.slot]
