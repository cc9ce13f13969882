"""The engine's page for Prometheus: totals equal the receipts' sums, and watching costs next to nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import pytest
from prometheus_client.parser import text_string_to_metric_families

import sgjax
from sgjax import SamplingParams
from sgjax.engine.batch import Batch, Row
from sgjax.engine.metrics import EngineMetrics
from sgjax.engine.sequence import Sequence
from sgjax.types import FinishReason, PromptParts, Receipt, Request, TokenEvent

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)


def read(page: str) -> dict[str, float]:
    """Samples by name, or name/label for those with a label beside the model's."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = [sample.labels[name] for name in ("kind", "part") if name in sample.labels]
            if "le" not in sample.labels:
                found["/".join([sample.name.removeprefix("sgjax:"), *labels])] = sample.value
    return found


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def total(receipts: Iterable[Receipt], name: str) -> int:
    return sum(getattr(receipt, name) for receipt in receipts)


def test_counters_equal_the_receipts(engine: sgjax.Engine):
    engine.flush_cache()
    shared = list(range(200, 250))
    prompts = [[*shared, 300 + i] for i in range(6)]
    before = read(engine.metrics())
    outputs = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    outputs += engine.generate(input_ids=prompts[:3], sampling_params=SamplingParams(max_new_tokens=3, n=2))
    grew = growth(before, read(engine.metrics()))
    receipts = [output.receipt for output in outputs]
    for name, field in {
        "prompt_tokens_total": "prompt_tokens",
        "cached_tokens_total": "cached_tokens",
        "generation_tokens_total": "completion_tokens",
        "forced_tokens_total": "forced_tokens",
        "num_retracted_requests_total": "preemptions",
    }.items():
        assert grew[name] == total(receipts, field), name
    for part in dataclasses.fields(PromptParts):
        parts = [receipt.prompt_parts for receipt in receipts]
        assert grew[f"prompt_parts_tokens_total/{part.name}"] == total(parts, part.name), part.name
    assert grew["prompt_parts_tokens_total/shared_in_flight"] > 0
    assert grew["num_requests_total"] == len(outputs) == 12
    assert grew["num_aborted_requests_total"] == 0
    for name in ("time_to_first_token", "e2e_request_latency", "queue_time"):
        assert grew[f"{name}_seconds_count"] == len(outputs)
    assert grew["inter_token_latency_seconds_count"] == total(receipts, "completion_tokens") - len(outputs)
    assert grew["e2e_request_latency_seconds_sum"] == pytest.approx(sum(receipt.e2e_s for receipt in receipts))
    assert grew["batch_rows_sum/decode"] + grew["batch_rows_sum/prefill"] == total(receipts, "steps")


def test_an_idle_page(engine: sgjax.Engine):
    engine.flush_cache()
    page = engine.metrics()
    values = read(page)
    for name in ("num_running_reqs", "num_queue_reqs", "num_grammar_queue_reqs", "num_used_tokens", "token_usage"):
        assert values[name] == 0
    assert values["max_total_num_tokens"] == 4096
    assert values["kv_cache_memory_usage_gb"] == 4096 * 2 * 2 * 2 * 16 * 4 / 2**30  # layers, k and v, heads, size, f32
    assert values["startup_time_seconds"] > 0
    families = list(text_string_to_metric_families(page))
    assert {sample.labels["model_name"] for family in families for sample in family.samples} == {engine.info.model_name}
    assert all(family.documentation for family in families)


def test_aborts_evictions_and_grammars(make_engine):
    engine = make_engine(max_total_tokens=512, context_length=256)
    for i in range(4):  # more than the pool holds
        engine.generate(input_ids=list(range(1000 * i + 10, 1000 * i + 210)), sampling_params=GREEDY)
    engine.generate("A number: ", {"regex": "Twelve green apples, [0-9]", "max_new_tokens": 12})
    stream = engine.stream("Once", {"max_new_tokens": 100, "ignore_eos": True})
    next(stream)
    assert read(engine.metrics())["num_running_reqs"] == 1
    stream.close()
    engine.check()  # behind the abort
    values = read(engine.metrics())
    assert values["evicted_tokens_total"] == engine.stats().cache.num_evicted_pages * 16 > 0
    assert values["eviction_duration_seconds_count"] > 0
    assert values["grammar_compilation_time_seconds_count"] == 1
    assert values["forced_tokens_total"] > 0
    assert values["num_aborted_requests_total"] == 1
    assert values["e2e_request_latency_seconds_count"] == values["num_requests_total"] - 1
    assert values["compile_events_total/forward"] > 0
    assert values["late_compile_events_total"] == 0


def test_what_was_evicted_is_called_so(make_engine):
    engine = make_engine(max_total_tokens=512, context_length=256)
    prompts = [list(range(1000 * i + 10, 1000 * i + 210)) for i in range(4)]
    cold = [engine.generate(input_ids=prompt, sampling_params=GREEDY).receipt.prompt_parts for prompt in prompts]
    assert cold == [PromptParts(not_in_cache=192, page_remainder=7, last_token=1)] * 4
    again = engine.generate(input_ids=prompts[0], sampling_params=GREEDY).receipt.prompt_parts
    assert again == PromptParts(evicted=192, page_remainder=7, last_token=1)
    engine.flush_cache()  # nobody's fault that it is not there
    flushed = engine.generate(input_ids=prompts[0], sampling_params=GREEDY).receipt.prompt_parts
    assert flushed == cold[0]


def test_log_probabilities_of_a_cached_prompt(make_engine):
    engine = make_engine()
    prompt = list(range(500, 540))
    engine.generate(input_ids=prompt, sampling_params=GREEDY)
    cached = engine.generate(input_ids=prompt, sampling_params=GREEDY).receipt.prompt_parts
    assert cached == PromptParts(cached=32, page_remainder=7, last_token=1)
    scored = engine.generate(input_ids=prompt, sampling_params=GREEDY, return_logprob=True, logprob_start_len=20)
    assert scored.receipt.prompt_parts == PromptParts(cached=16, logprobs_recomputed=16, page_remainder=7, last_token=1)
    disabled = make_engine(disable_radix_cache=True)
    receipt = disabled.generate(input_ids=prompt, sampling_params=GREEDY).receipt
    assert receipt.prompt_parts == PromptParts(cache_disabled=32, page_remainder=7, last_token=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admitted(rid: str, metrics: EngineMetrics, arrival_s: float = 0.0, cached: int = 0) -> Sequence:
    seq = Sequence(
        Request(rid=rid, input_ids=(1,) * 10),
        0,
        seed=0,
        stop_ids=frozenset(),
        context_length=100,
        arrival_s=arrival_s,
    )
    seq.receipt.cached_tokens = cached
    metrics.on_admitted(seq)
    return seq


def test_latencies():
    """Tokens of one event share the wait for it; the first of all is no wait between tokens."""
    clock = Clock()
    metrics = EngineMetrics(clock=clock)
    admitted("a", metrics)
    clock.now = 0.5
    metrics.on_events([TokenEvent("a", 0, [1])])
    clock.now = 0.8
    metrics.on_events([TokenEvent("a", 0, [2, 3, 4])])
    clock.now = 0.9
    metrics.on_events([TokenEvent("a", 0, [5], finish=FinishReason("length"), receipt=Receipt(e2e_s=0.9))])
    admitted("a", metrics, arrival_s=0.9)  # the id is free again
    clock.now = 1.0
    metrics.on_events([TokenEvent("a", 0, [1])])
    metrics.on_events([TokenEvent("a", 0, [], finish=FinishReason("abort"), receipt=Receipt(e2e_s=7.0))])
    histograms = {name: by_kind[""] for name, (_, by_kind) in metrics.histograms().items() if "" in by_kind}
    sums = {name: (histogram.count, round(histogram.sum, 6)) for name, histogram in histograms.items()}
    assert sums["time_to_first_token_seconds"] == (2, 0.6)
    assert sums["inter_token_latency_seconds"] == (4, 0.4)
    assert sums["e2e_request_latency_seconds"] == (1, 0.9)


def test_rates_are_of_the_last_seconds():
    clock = Clock()
    metrics = EngineMetrics(clock=clock)
    seq = admitted("a", metrics, cached=6)
    batch = Batch("decode", [Row(seq, 0, 1, True)])
    for second in range(1, 31):
        clock.now = float(second)
        metrics.on_events([TokenEvent("a", 0, [1] * 20)])
        metrics.on_step(batch, 0.02)
        if second == 5:
            assert metrics.recent_rates() == (20, 0.6)
    assert metrics.recent_rates() == (20, 0)
    clock.now = 60.0
    assert metrics.recent_rates() == (0, 0)


def test_watching_costs_little():
    """Well under a percent of a 20 ms step at 64 rows; here with much room for a busy machine."""
    metrics = EngineMetrics()
    seqs = [admitted(f"request-{i}", metrics) for i in range(64)]
    batch = Batch("decode", [Row(seq, 0, 1, True) for seq in seqs])
    events = [TokenEvent(seq.request.rid, 0, [1]) for seq in seqs]
    costs = []
    for _ in range(200):
        started_s = time.perf_counter()
        metrics.on_step(batch, 0.02)
        metrics.on_events(events)
        costs.append(time.perf_counter() - started_s)
    print(f"{sorted(costs)[100] * 1e6:.1f} us a step")
    assert sorted(costs)[100] < 0.0002
