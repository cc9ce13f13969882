"""What an engine tells about itself: fixed facts, and a moment's state. Plain values, free of jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from sgjax.cache.manager import CacheStats
from sgjax.cache.snapshot import TreeSnapshot
from sgjax.config import EngineConfig
from sgjax.engine.batch import SchedulerCounters
from sgjax.types import Request, RequestError

PauseMode = Literal["abort", "retract", "in_place"]
"""What becomes of running requests: ended, put back in the queue with their work in the cache, or held as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Facts that hold as long as the engine lives.

    Attributes:
      config: with every "auto" filled in.
      generation_defaults: the content of the checkpoint's `generation_config.json`.
      tokenizer_source: the folder, or the GGUF file, that holds the tokenizer.
      eos_token_ids: ids that end an answer, beside those that the tokenizer's own files name.
      num_pages: size of the KV pool.
      kv_cache_bytes: memory that the pool takes.
      startup_s: from the start of loading until the first steps were compiled.
      device: kind of the device, such as "cpu" or "NVIDIA H100 80GB HBM3".
    """

    config: EngineConfig
    model_name: str
    architecture: str
    vocab_size: int
    context_length: int
    generation_defaults: dict[str, Any]
    tokenizer_source: str
    eos_token_ids: tuple[int, ...]
    num_pages: int
    kv_cache_bytes: int
    startup_s: float
    device: str

    @property
    def max_total_tokens(self) -> int:
        """Tokens that the whole KV pool holds."""
        return self.num_pages * self.config.page_size

    def validate(self, request: Request) -> None:
        """Raises RequestError for a request that this engine could never run."""
        request.validate(
            vocab_size=self.vocab_size, context_length=self.context_length, max_total_tokens=self.max_total_tokens
        )

    def most_tokens(self, request: Request) -> int:
        """What a request counts as in flight: its prompt, and its outputs as long as they may become."""
        num_prompt, most = len(request.input_ids), request.sampling.max_new_tokens
        if most is None:
            most = max(0, self.context_length - num_prompt)
        return num_prompt + most * request.sampling.n

    def check_in_flight(self, requests: Sequence[Request]) -> None:
        """Raises RequestError for requests that together exceed what may wait or be in flight, even alone."""
        num_samples, most_samples = sum(request.sampling.n for request in requests), self.config.max_queued_requests
        if num_samples > most_samples:
            raise RequestError("n", f"{num_samples} samples are more than the queue ever holds, {most_samples}")
        limit = self.config.max_tokens_in_flight
        if limit is not None and (count := sum(map(self.most_tokens, requests))) > limit:
            message = f"with the prompt, {count} tokens may be needed; the server has {limit} in flight at most"
            raise RequestError("max_new_tokens", message)


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """A moment's state, and totals since the start.

    Attributes:
      num_preempted: those of `num_waiting` that ran before and had to make room.
      num_compiled_by_kind: executables ready, by what they compute.
      num_steps_compiled: executables ready. all_compiled: nothing is left to compile.
      num_late_compiles: compilations after that; anything but 0 is a bug.
      num_grammar_queue: requests whose grammar is being compiled.
      num_integrity_failures: checks that found pages or slots unaccounted for while idle; likewise.
      weight_version: of the weights that serve now.
    """

    num_running: int
    num_waiting: int
    num_preempted: int
    num_grammar_queue: int
    counters: SchedulerCounters
    cache: CacheStats
    num_steps_compiled: int
    num_compiled_by_kind: dict[str, int]
    all_compiled: bool
    num_late_compiles: int
    num_integrity_failures: int
    weight_version: str
    is_paused: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LiveSequence:
    """Progress of one sample. Its prefill is done when `computed_tokens`, cached ones included, reach the prompt."""

    is_running: bool
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class LiveSnapshot:
    """What people look at while the engine works, taken between two steps.

    Attributes:
      sequences: running ones, the oldest first, then waiting ones in their order; a bounded number.
    """

    stats: EngineStats
    sequences: tuple[LiveSequence, ...]
    tree: TreeSnapshot


@dataclasses.dataclass(frozen=True)
class StepReport:
    """A step at work: for `seconds` so far, over these requests, in this padded shape of (tokens, rows, pages)."""

    seconds: float
    kind: str
    shape: tuple[int, int, int]
    rids: tuple[str, ...]
