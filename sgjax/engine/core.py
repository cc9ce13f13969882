"""The engine's loop, one step at a time: schedule, pack, launch, commit the step before. Token ids in and out.

A step with grammars samples after that commit, since its masks depend on the tokens of the step before; they are filled
on the host while the device runs the step's forward pass.
"""

from __future__ import annotations

import time
from typing import Any

from sgjax.engine.batch import Batch, Row
from sgjax.engine.info import StepReport
from sgjax.engine.observer import NOBODY, EngineObserver
from sgjax.engine.packing import PackedStep, Packer
from sgjax.engine.runner import Runner, StepHandle
from sgjax.engine.scheduler import Scheduler
from sgjax.engine.sequence import Sequence
from sgjax.types import FinishReason, TokenEvent, TokenLogprobs


class EngineCore:
    """Scheduler, packer and runner in step. Single-threaded.

    Args:
      overlap: launch step n+1 before step n is read, so that the device never waits for the host.
      observer: told of every step and event.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        packer: Packer,
        runner: Runner,
        *,
        overlap: bool = True,
        observer: EngineObserver = NOBODY,
    ):
        self.scheduler = scheduler
        self.packer = packer
        self.runner = runner
        self.overlap = overlap
        self._observer = observer
        self._in_flight: tuple[Batch, StepHandle] | None = None
        self._started_s: float | None = None  # of the last step, until there is nothing to do
        self._waited_s = 0.0
        self._at_work: tuple[Batch, PackedStep] | None = None
        self._collected_s = 0.0

    @property
    def has_work(self) -> bool:
        return self._in_flight is not None or self.scheduler.has_work

    def add(self, seq: Sequence) -> None:
        self.scheduler.add(seq)

    def finish(self, rid: str, index: int | None, reason: FinishReason) -> list[TokenEvent]:
        events = self._observed(self.scheduler.finish(rid, index, reason))
        self._note_idle()
        return events

    def step(self) -> list[TokenEvent]:
        """Launches the next step and commits the one before; without overlap, the same one."""
        self._started_s, self._waited_s = time.monotonic(), self.runner.waited_s
        events = self._step()
        self._note_idle()
        return events

    def _note_idle(self) -> None:
        if not self.has_work:
            self._started_s = None

    def _step(self) -> list[TokenEvent]:
        launched = self._launch()
        events: list[TokenEvent] = []
        if self.overlap:
            previous, self._in_flight = self._in_flight, launched
            events += self._commit(previous)
        if launched is not None:
            events += self._sample(*launched)
        if not self.overlap:
            events += self._commit(launched)
        return events

    def retract(self) -> list[TokenEvent]:
        """Puts every running sequence back in the queue, its work in the cache; reads the step in flight for that."""
        previous, self._in_flight = self._in_flight, None
        events = self._commit(previous)
        for seq in reversed(self.scheduler.running.copy()):  # the oldest last, so that it is the first in the queue
            self.scheduler.preempt(seq)
        return events

    def report(self) -> StepReport | None:
        """The step at work or just done; None when there is nothing to do. Another thread may ask."""
        started_s, at_work = self._started_s, self._at_work
        if started_s is None or at_work is None:
            return None
        batch, packed = at_work
        shape = len(packed.token_ids), len(packed.kv_lens), packed.page_table.shape[1]
        rids = tuple(row.seq.request.rid for row in batch.rows)
        waited_s = self.runner.waited_s - self._waited_s  # for a compiler, which may take minutes
        return StepReport(time.monotonic() - started_s - waited_s, batch.kind, shape, rids)

    def _launch(self) -> tuple[Batch, StepHandle] | None:
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        packed = self.packer.pack(batch)
        self._at_work = batch, packed
        batch.launched_s = time.monotonic()
        handle = self.runner.launch(packed)
        if not batch.constrained:
            self.runner.sample(handle)
        return batch, handle

    def _sample(self, batch: Batch, handle: StepHandle) -> list[TokenEvent]:
        """Samples a step that had to wait for its masks. A grammar that lets nothing follow ends its sequence."""
        if handle.is_sampled:
            return []
        self.packer.add_mask(handle.step, batch)
        self.runner.sample(handle)
        return self._observed(self.scheduler.finish_dead_grammars(batch))

    def _commit(self, launched: tuple[Batch, StepHandle] | None) -> list[TokenEvent]:
        if launched is None:
            return []
        batch, handle = launched
        result = self.runner.collect(handle)
        now_s = time.monotonic()
        self._observer.on_step(batch, now_s - max(batch.launched_s, self._collected_s))
        self._collected_s = now_s
        tokens = result.tokens.tolist()
        logprobs = prompt_logprobs = None
        if result.logprobs is not None:
            logprobs = [
                _at(result.logprobs, i, tokens[i], row.seq) if row.seq.request.return_logprob else None
                for i, row in enumerate(batch.rows)
            ]
        if result.prompt_logprobs is not None:
            prompt_logprobs = _of_prompts(result.prompt_logprobs, batch.rows)
        return self._observed(self.scheduler.commit(batch, tokens, logprobs, prompt_logprobs))

    def _observed(self, events: list[TokenEvent]) -> list[TokenEvent]:
        self._observer.on_events(events)
        return events


def _at(found: Any, i: int, token: int, seq: Sequence) -> TokenLogprobs:
    """Row i of the device's log-probabilities, cut to what the request asked for."""
    num_top, asked = seq.request.top_logprobs_num, seq.request.token_ids_logprob
    return TokenLogprobs(
        token,
        float(found.chosen[i]),
        tuple(zip(found.top_ids[i, :num_top].tolist(), found.top_values[i, :num_top].tolist(), strict=True)),
        tuple(zip(asked, found.asked[i, : len(asked)].tolist(), strict=True)),
    )


def _of_prompts(found: Any, rows: list[Row]) -> list[list[TokenLogprobs] | None]:
    """Per row, the log-probabilities of the prompt positions after each of its tokens, from `logprob_start_len` on."""
    results: list[list[TokenLogprobs] | None] = []
    begin = 0
    for row in rows:
        seq = row.seq
        if seq.prompt_logprobs is None:
            results.append(None)
        else:
            first = max(row.start + 1, seq.request.logprob_start_len)
            end = min(row.start + row.length + 1, seq.num_prompt)
            results.append([_at(found, begin + p - 1 - row.start, int(seq.tokens[p]), seq) for p in range(first, end)])
        begin += row.length
    return results
