"""What grammars cost a device whose step takes a given time: are the masks hidden behind the forward pass?

Scheduler, packer and matchers are the engine's own; the device is a clock. A forward pass ends `step_s` after it was
launched or after the step before, whichever is later; its tokens are there `SAMPLE_S` after both the forward pass has
ended and the masks have come. Every row says a JSON document that is known before, so the choice takes no time.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.structured.schemas import CHARACTER, unbounded
from sgjax.cache.manager import CacheManager
from sgjax.engine.batch import SchedulerLimits
from sgjax.engine.buckets import Buckets
from sgjax.engine.core import EngineCore
from sgjax.engine.packing import PackedStep, Packer
from sgjax.engine.runner import StepResult
from sgjax.engine.scheduler import Scheduler
from sgjax.engine.sequence import Sequence
from sgjax.grammar import GrammarCompiler
from sgjax.text import Tokenizer
from sgjax.types import Request, SamplingParams

PAGE_SIZE, CONTEXT = 16, 2048
PROMPT = tuple(range(100, 164))
SAMPLE_S = 0.0005
SCHEMAS = {
    "unbounded strings": json.dumps({"type": "array", "items": unbounded(CHARACTER)}),
    # The end of a string that is nearly full depends on every token's length: masks that take long.
    "bounded strings": json.dumps({"type": "array", "items": CHARACTER}),
}


@dataclasses.dataclass
class _Launched:
    step: PackedStep
    forward_ends_s: float
    ends_s: float = 0.0

    @property
    def is_sampled(self) -> bool:
        return self.ends_s > 0


class ClockRunner:
    """A device that takes time and computes nothing.

    Args:
      outputs: by request id, the tokens that it says.

    Attributes:
      waited_s: how long it had nothing to do because masks were missing.
    """

    waited_s = 0.0

    def __init__(self, step_s: float, outputs: Mapping[str, np.ndarray]):
        self.step_s = step_s
        self.outputs = outputs
        self.scheduler: Scheduler | None = None
        self.waited_s = 0.0
        self._free_at_s = 0.0

    def launch(self, step: PackedStep) -> _Launched:
        return _Launched(step, max(time.perf_counter(), self._free_at_s) + self.step_s)

    def sample(self, launched: _Launched) -> None:
        now_s = time.perf_counter()
        self.waited_s += max(0.0, now_s - launched.forward_ends_s)
        self._free_at_s = launched.ends_s = max(now_s, launched.forward_ends_s) + SAMPLE_S

    def collect(self, launched: _Launched) -> StepResult:
        assert self.scheduler is not None
        time.sleep(max(0.0, launched.ends_s - time.perf_counter()))
        step = launched.step
        tokens = np.zeros(len(step.slots), np.int32)
        at = dict(zip(step.slots.tolist(), range(len(step.slots)), strict=True))
        for seq in self.scheduler.running:
            if (row := at.get(seq.slot)) is not None:
                tokens[row] = self.outputs[seq.request.rid][step.kv_lens[row] - len(PROMPT)]
        return StepResult(tokens)


def measure(
    tokenizer: Tokenizer, num_rows: int, step_ms: list[float], num_steps: int, repeats: int
) -> list[dict[str, Any]]:
    """For each step time and schema, the throughput of constrained rows as a share of that of free rows."""
    outputs = {str(i): _document(tokenizer, i, num_steps + 64) for i in range(num_rows)}
    compiler = GrammarCompiler(
        tokenizer.to_json(), vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.eos_token_ids
    )
    found = []
    for milliseconds in step_ms:
        seconds: dict[str, list[float]] = {"free": [], **{name: [] for name in SCHEMAS}}
        waited: dict[str, list[float]] = {name: [] for name in seconds}
        for _ in range(repeats):
            for name, times in seconds.items():
                runner = ClockRunner(milliseconds / 1e3, outputs)
                core = _core(tokenizer, num_rows, runner, compiler, SCHEMAS.get(name))
                times.append(_time_steps(core, num_steps))
                waited[name].append(runner.waited_s)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        found += [
            {
                "rows": num_rows,
                "schema": name,
                "step_ms": milliseconds,
                "throughput_share": medians["free"] / medians[name],
                "device_waited_ms": 1e3 * statistics.median(waited[name]) / num_steps,
            }
            for name in SCHEMAS
        ]
    compiler.close()
    return found


def _document(tokenizer: Tokenizer, seed: int, num_tokens: int) -> np.ndarray:
    """Tokens of a list of characters, at least so many."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))

    def character() -> dict[str, Any]:
        def word() -> str:
            return "".join(rng.choice(letters, int(rng.integers(3, 12)))).capitalize()

        return {
            "name": word(),
            "age": int(rng.integers(0, 131)),
            "occupation": str(rng.choice(["student", "engineer", "teacher", "artist"])),
            "address": {"street": word(), "city": word(), "postal_code": f"{rng.integers(0, 100_000):05}"},
            "favourite_colour": str(rng.choice(["red", "green", "blue"])),
            "is_active": bool(rng.integers(2)),
            "favourite_animals": rng.choice(["cat", "dog"], 2).tolist(),
        }

    text = json.dumps([character() for _ in range(num_tokens // 20)], separators=(",", ":"))
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(token_ids) >= num_tokens
    return np.array(token_ids, np.int32)


def _core(
    tokenizer: Tokenizer, num_rows: int, runner: ClockRunner, compiler: GrammarCompiler, schema: str | None
) -> EngineCore:
    """Running sequences, each with its first token, on a clock."""
    num_pages = num_rows * CONTEXT // PAGE_SIZE
    buckets = Buckets.make(
        max_running=num_rows, chunk_tokens=8192, prefill_rows=64, max_pages=CONTEXT // PAGE_SIZE, min_pages=64
    )
    limits = SchedulerLimits(max_running=num_rows, chunk_tokens=8192, prefill_rows=64)
    scheduler = Scheduler(CacheManager(num_pages, PAGE_SIZE), limits)
    packer = Packer(
        buckets, max_running=num_rows, num_pages=num_pages, page_size=PAGE_SIZE, vocab_size=tokenizer.vocab_size
    )
    runner.scheduler = scheduler
    core = EngineCore(scheduler, packer, runner)  # type: ignore[arg-type]
    for rid in runner.outputs:
        # Prompts differ in their first token, so that none waits for another's pages.
        sampling = SamplingParams(max_new_tokens=None, temperature=0, json_schema=schema)
        request = Request(rid=rid, input_ids=(int(rid), *PROMPT[1:]), sampling=sampling)
        seq = Sequence(request, 0, seed=0, stop_ids=frozenset(), context_length=CONTEXT, arrival_s=0.0)
        if sampling.grammar is not None:
            seq.constrain(compiler.compile(sampling.grammar).result().matcher(), jump_forward=False)
        core.add(seq)
    while scheduler.counters.decode_steps < 2:
        core.step()
    return core


def _time_steps(core: EngineCore, num_steps: int) -> float:
    start_s = time.perf_counter()
    for _ in range(num_steps):
        core.step()
    seconds = time.perf_counter() - start_s
    assert not core.scheduler.counters.num_finished, "a mask did not allow its document's token"
    return seconds
