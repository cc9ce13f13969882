"""A workload in this process, on engines with and without the prefix cache."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import sgjax
from benchmarks.programs.best import Sent, best_cached
from benchmarks.programs.workload import Workload
from sgjax.lang.backends.engine import EngineBackend


class RecordingEngine:
    """What a backend needs of an engine, with a record of what was sent, in the order of the answers."""

    def __init__(self, engine: sgjax.Engine):
        self._engine = engine
        self._lock = threading.Lock()
        self.tokenizer = engine.tokenizer
        self.sent: list[Sent] = []

    def generate(self, **request: Any) -> Any:
        answer = self._engine.generate(**request)
        self._record(request, answer if isinstance(answer, list) else [answer])
        return answer

    def stream(self, **request: Any) -> Iterator[sgjax.GenerateOutput]:
        outputs: dict[int, sgjax.GenerateOutput] = {}
        for output in self._engine.stream(**request):
            outputs[output.index] = output
            yield output
        self._record(request, list(outputs.values()))

    def _record(self, request: dict[str, Any], outputs: list[sgjax.GenerateOutput]) -> None:
        start = request["logprob_start_len"] if request.get("return_logprob") else None
        sent = [
            Sent(output.prompt_ids, tuple(output.output_ids), start, output.receipt.cached_tokens)
            for output in outputs
            if output.receipt is not None
        ]
        with self._lock:
            self.sent += sent


class UncachedBackend(EngineBackend):
    """For an engine without a prefix cache: filling it ahead would be work for nothing."""

    has_prefix_cache = False


@dataclasses.dataclass(frozen=True, slots=True)
class ProgramRun:
    """One run of a whole workload.

    Attributes:
      sent: its requests, those that only fill the cache included.
    """

    answers: list[Any]
    wall_s: float
    sent: list[Sent]

    def counts(self, page_size: int) -> dict[str, float]:
        """Requests and tokens, and the hit rate beside the best possible ones."""
        prompt = sum(len(request.prompt_ids) for request in self.sent)
        return {
            "requests": len(self.sent),
            "prompt_tokens": prompt,
            "completion_tokens": sum(len(request.output_ids) for request in self.sent),
            "hit_rate": sum(request.cached for request in self.sent) / prompt,
            "best_hit_rate_pages": best_cached(self.sent, page_size) / prompt,
            "best_hit_rate_tokens": best_cached(self.sent, 1) / prompt,
        }


def run(workload: Workload, engine: sgjax.Engine, batch: list[dict[str, Any]]) -> ProgramRun:
    """Runs a workload with an empty cache."""
    engine.flush_cache()
    recorder = RecordingEngine(engine)
    backend = (UncachedBackend if engine.config.disable_radix_cache else EngineBackend)(recorder)
    start = time.perf_counter()
    answers = workload.run(backend, batch)
    return ProgramRun(answers, time.perf_counter() - start, recorder.sent)
