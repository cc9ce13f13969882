"""Which tokens the next step computes: admission, chunked prefill, decode, preemption. No tensors, no jax.

Steps are of two kinds, interleaved: a prefill step computes up to `chunk_tokens` prompt tokens of several sequences,
a decode step one token of every running sequence. After a prefill step a decode step follows whenever somebody can
decode, so a long prompt delays the next token of the others by one chunk at most.

Overlap: `schedule` may be called for step n+1 before step n is committed. A sequence then has one pending token, which
lives on the device; it is fed back by slot. One that turns out to have ended at step n is dropped from n+1 at commit.
Pages are handed on at once, because the device runs steps in launch order (docs/architecture.md).

Grammars: `commit` feeds each token to its sequence's matcher, so matchers are up to date before the step after it
samples, and neither overlap nor preemption ever has to take a token back. Where the grammar forces the next tokens they
are appended at once and computed as one extend: the sequence is then not `prefilled`, like one whose prompt is being
computed in chunks, and what the step in flight would have sampled for it is dropped (`Row.sample` becomes False).

In-flight sharing: the pages of a prefill step enter the radix tree when the next step is scheduled. A waiting sequence
whose next page is just being computed by somebody else is passed over for one step and finds that page in the tree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sgjax.cache.manager import CacheManager, Prefix
from sgjax.engine.batch import Batch, Row, SchedulerCounters, SchedulerLimits, StepKind
from sgjax.engine.observer import NOBODY, EngineObserver
from sgjax.engine.policy import computed_by_another, order_waiting
from sgjax.engine.prompt_parts import explain_prompt
from sgjax.engine.sequence import Sequence, Status
from sgjax.types import FinishReason, TokenEvent, TokenLogprobs

if TYPE_CHECKING:
    from sgjax.grammar import Matcher

# Waiting sequences looked at for one step: in a burst with one uncached prefix all but the first are passed over.
MAX_CANDIDATES = 256
# Forced tokens are taken without sampling when they are this many times as many as the tokens that others lose by it.
JUMP_GAIN = 2


class Scheduler:
    """Owns every `Sequence` and its pages. Single-threaded."""

    def __init__(
        self,
        cache: CacheManager,
        limits: SchedulerLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: EngineObserver = NOBODY,
    ):
        self.cache = cache
        self._observer = observer
        self.limits = limits
        self.counters = SchedulerCounters()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in admission order, oldest first
        self._samples: dict[str, list[Sequence]] = {}  # waiting or running, by request
        self._free_slots = list(range(limits.max_running - 1, -1, -1))
        self._launched = Batch("decode", [])
        self._launched_prefill: list[Sequence] = []
        self._last_kind = "decode"
        self._clock = clock

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Queues a sequence whose request was validated."""
        self.counters.num_requests += 1
        self._count_generated(seq.receipt.completion_tokens, seq.receipt.forced_tokens)
        seq.num_cached_at_arrival = self._match(seq).num_tokens
        self.waiting.append(seq)
        self._samples.setdefault(seq.request.rid, []).append(seq)

    # --- scheduling -------------------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can run before an outstanding step is committed."""
        self._share_launched_prefill()
        decodable = [seq for seq in self.running if seq.decodable]
        prefill_first = self._last_kind == "decode" or not decodable
        rows = self._prefill_rows() if prefill_first else []
        if rows:
            return self._launch("prefill", rows)
        rows = self._decode_rows(decodable)
        if rows:
            return self._launch("decode", rows)
        rows = [] if prefill_first else self._prefill_rows()
        return self._launch("prefill", rows) if rows else None

    def _launch(self, kind: StepKind, rows: list[Row]) -> Batch:
        self._last_kind = kind
        if kind == "prefill":
            self.counters.prefill_steps += 1
            self._launched_prefill = [row.seq for row in rows]
        else:
            self.counters.decode_steps += 1
        for row in rows:
            seq = row.seq
            seq.num_computed = row.start + row.length
            seq.num_pending += row.sample
            seq.receipt.steps += 1
            seq.receipt.computed_tokens += row.length
        self._launched = Batch(kind, rows)
        return self._launched

    def _share_launched_prefill(self) -> None:
        """Puts the full pages of the last prefill step, launched by now, into the tree."""
        for seq in self._launched_prefill:
            if seq.status is Status.RUNNING:
                self._insert_computed(seq)
        self._launched_prefill = []

    def _prefill_rows(self) -> list[Row]:
        budget = self.limits.chunk_tokens
        rows: list[Row] = []
        for seq in self.running.copy():
            if seq.prefilled or budget <= 0 or len(rows) == self.limits.prefill_rows:
                continue
            if seq.status is Status.RUNNING and self._grow(seq, self._pages_for(seq.target)):
                rows.append(self._prefill_row(seq, budget))
                budget -= rows[-1].length
        if not self.waiting or budget <= 0 or not self._free_slots:
            return rows
        for seq in self._candidates():
            if budget <= 0 or not self._free_slots or len(rows) == self.limits.prefill_rows:
                break
            if seq.num_pending:  # preempted while its last token is still on the device
                continue
            prefix = self._match(seq)
            page_end = prefix.num_tokens + self.cache.page_size
            if self.cache.enabled and computed_by_another(seq, prefix.num_tokens, page_end, rows):
                continue
            if not self._admit(seq, prefix):
                break  # whoever is first in order gets the next pages, however small the others are
            rows.append(self._prefill_row(seq, budget))
            budget -= rows[-1].length
        return rows

    def _prefill_row(self, seq: Sequence, budget: int) -> Row:
        length = min(budget, seq.target - seq.num_computed)
        done = seq.num_computed + length == seq.target
        return Row(seq, seq.num_computed, length, sample=done and seq.target < seq.max_tokens)

    def _match(self, seq: Sequence) -> Prefix:
        return self.cache.match(seq.tokens[: seq.num_tokens], seq.request.extra_key, seq.match_limit)

    def _candidates(self) -> list[Sequence]:
        return order_waiting(
            self.waiting,
            self.limits.policy,
            most=MAX_CANDIDATES,
            now_s=self._clock(),
            aging_s=self.limits.aging_s,
            match_len=lambda seq: self._match(seq).num_tokens,
        )

    def _admit(self, seq: Sequence, prefix: Prefix) -> bool:
        """Gives a waiting sequence a slot and all pages of its prefill; False when pages are short.

        A page for every running sequence is kept back, so that admitting one does not at once preempt another.
        """
        self.cache.lock(prefix)
        num_pages = self._pages_for(seq.num_tokens) - len(prefix.pages)
        reserve = len(self.running)
        pages = self.cache.allocate(num_pages) if num_pages + reserve <= self.cache.num_available else None
        if pages is None:
            self.cache.unlock(prefix)
            return False
        self.waiting.remove(seq)
        self.running.append(seq)
        seq.status = Status.RUNNING
        seq.slot = self._free_slots.pop()
        seq.prefix = prefix
        seq.pages = prefix.pages + pages
        seq.pages_changed = True
        seq.num_computed = prefix.num_tokens
        seq.target = seq.num_tokens
        if not seq.admitted:
            seq.admitted = True
            seq.receipt.queue_s = self._clock() - seq.arrival_s
            seq.receipt.cached_tokens = min(prefix.num_tokens, seq.num_prompt)
            seq.receipt.prompt_parts = explain_prompt(self.cache, seq, prefix)
            self.counters.prompt_tokens += seq.num_prompt
            self.counters.cached_tokens += seq.receipt.cached_tokens
            self._observer.on_admitted(seq)
        return True

    def _decode_rows(self, decodable: list[Sequence]) -> list[Row]:
        """One row for every sequence that can decode; the youngest give way when pages run out."""
        page_size = self.cache.page_size
        rows: list[Row] = []
        for seq in decodable:
            if seq.status is not Status.RUNNING:  # preempted below, for an older one
                continue
            start = seq.num_computed
            if not self._grow(seq, start // page_size + 1):
                continue
            rows.append(Row(seq, start, 1, sample=True))
        return rows

    def _grow(self, seq: Sequence, num_pages: int) -> bool:
        """Pages for `seq` up to `num_pages`, at the cost of younger sequences; False when `seq` itself had to go."""
        while len(seq.pages) < num_pages:
            if (pages := self.cache.allocate(num_pages - len(seq.pages))) is not None:
                seq.pages += pages
                break
            victim = self.running[-1]
            self.preempt(victim)
            if victim is seq:
                return False
        return True

    def preempt(self, seq: Sequence) -> None:
        """Back to the head of the queue; its full pages stay in the tree until somebody needs the room."""
        self._release(seq)
        seq.status = Status.WAITING
        seq.num_computed = 0
        seq.receipt.preemptions += 1
        self.counters.num_preemptions += 1
        self.waiting.insert(0, seq)

    # --- pages ------------------------------------------------------------------------------------------------

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.cache.page_size)

    def _insert_computed(self, seq: Sequence) -> None:
        """Hands the tree every full page of known tokens; duplicates are replaced by the tree's pages."""
        page_size = self.cache.page_size
        num_full = min(seq.num_computed, seq.num_tokens) // page_size
        assert seq.prefix is not None
        if num_full * page_size <= seq.prefix.num_tokens:
            return
        seq.prefix = self.cache.insert(
            seq.tokens[: num_full * page_size], seq.pages[:num_full], seq.prefix, seq.request.extra_key
        )
        owned = len(seq.prefix.pages)
        if seq.pages[:owned] != seq.prefix.pages:
            seq.pages[:owned] = seq.prefix.pages
            seq.pages_changed = True

    def _release(self, seq: Sequence) -> None:
        """Takes a running sequence out: pages to the tree or free, slot free."""
        self._insert_computed(seq)
        assert seq.prefix is not None
        self.cache.unlock(seq.prefix)
        self.cache.free(seq.pages[len(seq.prefix.pages) :])
        seq.receipt.pages = len(seq.pages)
        seq.prefix, seq.pages = None, []
        self._free_slots.append(seq.slot)
        seq.slot = -1
        self.running.remove(seq)

    def check(self) -> None:
        """Asserts that every sequence, page and slot is accounted for (tests, and when idle)."""
        samples = {seq for of_request in self._samples.values() for seq in of_request}
        assert samples == {*self.waiting, *self.running}, f"sequences lost: {samples ^ {*self.waiting, *self.running}}"
        private = [p for seq in self.running for p in seq.pages[len(seq.prefix.pages) if seq.prefix else 0 :]]
        self.cache.check(private)
        slots = [seq.slot for seq in self.running] + self._free_slots
        assert sorted(slots) == list(range(self.limits.max_running)), f"slots lost or doubled: {sorted(slots)}"

    # --- results ----------------------------------------------------------------------------------------------

    def commit(
        self,
        batch: Batch,
        token_ids: list[int],
        logprobs: list[TokenLogprobs | None] | None = None,
        prompt_logprobs: list[list[TokenLogprobs] | None] | None = None,
    ) -> list[TokenEvent]:
        """Takes the result of a launched step: one token per row (ignored where the row does not sample).

        `prompt_logprobs[i]` are for the prompt positions start+1 .. start+length of row i that the request asked for.
        """
        events: list[TokenEvent] = []
        constrained: list[tuple[Sequence, TokenEvent]] = []
        for i, row in enumerate(batch.rows):
            seq = row.seq
            if seq.status is Status.FINISHED:
                continue
            if prompt_logprobs is not None and prompt_logprobs[i]:
                seq.store_prompt_logprobs(row.start + 1, prompt_logprobs[i] or [])
            if row.sample:
                seq.num_pending -= 1
                events.append(self._append(seq, token_ids[i], logprobs[i] if logprobs else None))
                if seq.matcher is not None and seq.status is not Status.FINISHED:
                    constrained.append((seq, events[-1]))
            elif seq.max_tokens == seq.num_prompt and row.start + row.length == seq.target:
                events.append(self._finished(seq, FinishReason("length"), []))
        self._jump_forward(constrained)
        return events

    def _append(self, seq: Sequence, token: int, logprob: TokenLogprobs | None) -> TokenEvent:
        seq.tokens[seq.num_tokens] = token
        seq.num_tokens += 1
        seq.receipt.completion_tokens += 1
        self._count_generated(1)
        if seq.receipt.ttft_s == 0.0:
            seq.receipt.ttft_s = self._clock() - seq.arrival_s
        logprobs = [logprob] if logprob is not None else None
        if token in seq.stop_ids and seq.receipt.completion_tokens > seq.request.sampling.min_new_tokens:
            return self._finished(seq, FinishReason("stop", matched=token), [token], logprobs)
        if seq.matcher is not None and not seq.matcher.accept(token):
            reason = FinishReason("abort", message=seq.matcher.error or f"the grammar does not take token {token}")
        else:
            reason = self._ending(seq)
        return self._finished(seq, reason, [token], logprobs) if reason else self._event(seq, [token], logprobs)

    def _ending(self, seq: Sequence) -> FinishReason | None:
        """Why nothing may follow the tokens so far."""
        if seq.matcher is not None and seq.matcher.is_stopped:
            return _end_of_grammar(seq.matcher)
        return FinishReason("length") if seq.num_tokens == seq.max_tokens else None

    def _jump_forward(self, constrained: list[tuple[Sequence, TokenEvent]]) -> None:
        """Appends what grammars force to the sequences and events of a committed step, where that is worth it."""
        # One forced token costs a decode step less than an extend: it is sampled, from a mask that leaves nothing else.
        jumps = [(seq, event, forced) for seq, event in constrained if len(forced := seq.forced()) > 1]
        # The extends take steps of their own, in which the other rows get nothing.
        num_lost = -(-len(jumps) // self.limits.prefill_rows) * len(self.running) - len(jumps)
        if sum(len(forced) for *_, forced in jumps) < JUMP_GAIN * num_lost:
            return
        for seq, event, forced in jumps:
            seq.append_forced(forced)
            event.token_ids += forced
            self._count_generated(len(forced), num_forced=len(forced))
            self._drop_pending(seq)
            if reason := self._ending(seq):
                self._end(seq, reason, event)

    def _drop_pending(self, seq: Sequence) -> None:
        """What the step in flight would sample for `seq` is not wanted."""
        for row in self._launched.rows if seq.num_pending else ():
            if row.seq is seq:
                row.sample = False
        seq.num_pending = 0

    def _count_generated(self, num_tokens: int, num_forced: int = 0) -> None:
        self.counters.generated_tokens += num_tokens
        self.counters.forced_tokens += num_forced

    def _event(self, seq: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> TokenEvent:
        token_ids, seq.unreported = [*seq.unreported, *token_ids], []
        is_first = seq.receipt.completion_tokens == len(token_ids)
        receipt = seq.receipt if is_first else None
        return TokenEvent(seq.request.rid, seq.index, token_ids, logprobs, seq.take_prompt_logprobs(), receipt=receipt)

    def _finished(
        self,
        seq: Sequence,
        reason: FinishReason,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None = None,
    ) -> TokenEvent:
        event = self._event(seq, token_ids, logprobs)
        self._end(seq, reason, event)
        return event

    def _end(self, seq: Sequence, reason: FinishReason, event: TokenEvent) -> None:
        """Takes a sequence out of the engine; `event` is the last that is told of it."""
        if seq.status is Status.RUNNING:
            self._release(seq)
        else:  # preempted or still queued
            self.waiting.remove(seq)
        self._samples[event.rid].remove(seq)
        if not self._samples[event.rid]:
            del self._samples[event.rid]
        seq.status = Status.FINISHED
        seq.receipt.e2e_s = self._clock() - seq.arrival_s
        self.counters.num_finished += 1
        self.counters.num_aborted += reason.kind == "abort"
        event.finish, event.receipt = reason, seq.receipt

    def finish(self, rid: str, index: int | None, reason: FinishReason) -> list[TokenEvent]:
        """Ends one sample (or all of a request, index None) from outside: an abort, or a stop string in its text.

        Unknown or ended ones are no error: the caller cannot know what has just finished.
        """
        found = [seq for seq in self._samples.get(rid, ()) if index is None or seq.index == index]
        return [self._finished(seq, reason, []) for seq in found]

    def finish_dead_grammars(self, batch: Batch) -> list[TokenEvent]:
        """Ends the sequences of a launched step whose grammar lets no token follow."""
        rows = [row for row in batch.rows if row.sample and row.seq.status is not Status.FINISHED]
        return [
            self._finished(row.seq, _end_of_grammar(row.seq.matcher), [])
            for row in rows
            if row.seq.matcher is not None and row.seq.matcher.error
        ]


def _end_of_grammar(matcher: Matcher) -> FinishReason:
    return FinishReason("abort", message=matcher.error) if matcher.error else FinishReason("stop")
