"""The real engine, with random weights: offline throughput, and how long the device waits between decode steps."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.gpu import workloads
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import LLAMA_8B, LLAMA_TINY, Offline

NUM_REPLAYS = 30
BATCHES = (1, 8, 64, 256)


def run(settings: Settings) -> None:
    """Of Llama-3.1-8B's shape: throughput of each workload, then decode steps at 1,024 tokens a row by batch size."""
    runs = workloads.offline(settings.tiny)
    with tempfile.TemporaryDirectory() as folder:
        engine: list[Any] = []
        if not report("engine start", _start, engine, settings, Path(folder), runs):
            return
        try:
            for workload in runs:
                report(f"offline {workload.name}", _throughput, engine[0], workload, settings.seed, impl="sgjax")
            for batch in BATCHES[:2] if settings.tiny else (1, 64, 256, 8):
                report(f"engine step, batch {batch}", _idle, engine[0], batch, settings)
        finally:
            engine[0].close()


def _start(engine: list[Any], settings: Settings, folder: Path, runs: tuple[Offline, ...]) -> dict:
    """An engine whose buckets are compiled when first used: the run before the measured one uses them all."""
    need("tokenizers", "llguidance", "safetensors", "gguf", "orbax")
    from sgjax import Engine

    shape = LLAMA_TINY if settings.tiny else LLAMA_8B
    write_model(folder, shape)
    started = time.perf_counter()
    context_length = max(run.input_len + run.output_len for run in runs) + 64
    made = Engine(str(folder), load_format="dummy", context_length=context_length, skip_warmup=True)
    engine.append(made)
    _use_few_buckets(made)
    return {"start_s": time.perf_counter() - started, "page_size": made.config.page_size}


def _use_few_buckets(engine: Any) -> None:
    """Of an 8B model each bucket compiles for ten seconds. One for prefills and these for decoding are enough here."""
    core = engine._core
    buckets = core.packer.buckets
    decode_rows = tuple(
        sorted({size for size in BATCHES if size < buckets.decode_rows[-1]} | {buckets.decode_rows[-1]})
    )
    few = dataclasses.replace(buckets, decode_rows=decode_rows, prefill=buckets.prefill[-1:])
    core.packer.buckets = core.runner.buckets = few


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A checkpoint's folder without weights, and with a tokenizer that has a word for every id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    (folder / "config.json").write_text(json.dumps(shape))
    words = {f"<{i}>": i for i in range(shape["vocab_size"])}
    Tokenizer(WordLevel(words, unk_token="<0>")).save(str(folder / "tokenizer.json"))


def _prompts(engine: Any, count: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, engine.model_config.vocab_size, (count, length)).tolist()


def _generate(engine: Any, workload: Offline, seed: int) -> int:
    """Runs a workload on prompts of its own; returns the tokens generated."""
    params = dict(temperature=0, max_new_tokens=workload.output_len, ignore_eos=True)
    prompts = _prompts(engine, workload.requests, workload.input_len, seed)
    return sum(len(output.output_ids) for output in engine.generate(input_ids=prompts, sampling_params=params))


def _warm_up(engine: Any, workload: Offline, seed: int) -> None:
    """Few tokens, yet so many that the first rows still decode when the last one's prompt has been computed."""
    prefill_steps = -(-workload.requests * workload.input_len // engine.config.chunked_prefill_size)
    _generate(engine, workload._replace(output_len=min(workload.output_len, 2 * prefill_steps + 8)), seed)


def _throughput(engine: Any, workload: Offline, seed: int) -> dict:
    _warm_up(engine, workload, seed)
    compiles = engine.stats().num_steps_compiled
    started = time.perf_counter()
    generated = _generate(engine, workload, seed + 1)
    seconds = time.perf_counter() - started
    compiled = engine.stats().num_steps_compiled - compiles
    return {"seconds": seconds, "tokens_per_s": round(generated / seconds), "compiled_meanwhile": compiled}


class _Launch(NamedTuple):
    at_s: float
    ran_dry: bool
    step: Any


class _LaunchLog:
    """Stands in a runner's `launch`: notes when steps start, and whether the device had nothing to do by then."""

    def __init__(self, runner: Any):
        self._launch = runner.launch
        self._last: Any = None
        self.launches: list[_Launch] = []

    def __call__(self, step: Any) -> Any:
        ran_dry = self._last is not None and self._last.tokens is not None and self._last.tokens.is_ready()
        self.launches.append(_Launch(time.perf_counter(), ran_dry, step))
        self._last = self._launch(step)
        return self._last


def _idle(engine: Any, batch: int, settings: Settings) -> dict:
    """The engine's decode steps against the same step launched over and over, which leaves the device no gap.

    The step in the middle stands for all: the rows grow meanwhile, before it as much as after it.
    """
    workload = Offline(batch, 20, 12) if settings.tiny else Offline(batch, 1024, 128)
    runner = engine._core.runner
    _warm_up(engine, workload, settings.seed + 2)
    log = runner.launch = _LaunchLog(runner)
    try:
        _generate(engine, workload, settings.seed + 3)
    finally:
        del runner.launch
    whole = [launch for launch in log.launches if launch.step.decode and len(launch.step.kv_lens) >= batch]
    whole = whole[-workload.output_len * 3 // 4 :]  # The first rows decode while others are still prefilled.
    gaps = [after.at_s - before.at_s for before, after in itertools.pairwise(whole)]
    device_s = engine.call(lambda: _replay(runner, whole[len(whole) // 2].step))
    engine.flush_cache()
    seconds = statistics.median(gaps)
    return {
        "seconds": seconds,
        "device_s": device_s,
        "idle_fraction": max(0.0, 1 - device_s / seconds),
        "ran_dry_fraction": sum(launch.ran_dry for launch in whole) / len(whole),
        "tokens_per_s": round(batch / seconds),
    }


def _replay(runner: Any, step: Any) -> float:
    """Seconds of one step among many queued behind one another."""

    def launch() -> Any:
        handle = runner.launch(step)
        runner.sample(handle)
        return handle.tokens

    samples = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready([launch() for _ in range(NUM_REPLAYS)][-1])
        samples.append((time.perf_counter() - started) / NUM_REPLAYS)
    return statistics.median(samples)
