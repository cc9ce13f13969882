"""The engine's Prometheus metrics, under SGLang's names with the prefix `sgjax:`.

Totals and states are read when the page is asked for, from `EngineStats`, which the engine keeps anyway; what only
passes by (times, sizes of batches) is counted here as it happens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sgjax.engine.batch import Batch
from sgjax.engine.histogram import Histogram
from sgjax.engine.info import EngineInfo, EngineStats
from sgjax.engine.observer import EngineObserver
from sgjax.engine.sequence import Sequence
from sgjax.types import PromptParts, TokenEvent

PREFIX = "sgjax:"
RATE_WINDOW_S = 10

_TOKEN_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06, 0.08, 0.1, 0.2, 0.5, 1, 2, 5)
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 80, 160)
_REQUEST_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1, 2, 5, 10, 20, 40, 60, 100, 200, 400, 800, 1600)
_QUEUE_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_GRAMMAR_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_EVICTION_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
_STEP_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class EngineMetrics(EngineObserver):
    """Counts what the engine does. One per engine; the engine's thread tells it, any thread may render.

    Args:
      clock: the scheduler's.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._first_token = Histogram(_FIRST_TOKEN_S)
        self._between_tokens = Histogram(_TOKEN_S)
        self._request = Histogram(_REQUEST_S)
        self._queue = Histogram(_QUEUE_S)
        self._eviction = Histogram(_EVICTION_S)
        self._grammar = Histogram(_GRAMMAR_S)
        self._steps = {kind: (Histogram(_STEP_S), Histogram(_ROWS)) for kind in ("prefill", "decode")}
        self._parts = PromptParts()
        self._arrived_s: dict[tuple[str, int], float] = {}  # of admitted samples without a token yet
        self._last_token_s: dict[tuple[str, int], float] = {}  # of the others
        self._recent = _Recent(clock())

    # --- told by the engine -----------------------------------------------------------------------------------

    def on_admitted(self, seq: Sequence) -> None:
        receipt = seq.receipt
        self._arrived_s[seq.request.rid, seq.index] = seq.arrival_s
        self._queue.observe(receipt.queue_s)
        self._recent.count(prompt=receipt.prompt_tokens, cached=receipt.cached_tokens)
        if receipt.prompt_parts is not None:
            self._parts.add(receipt.prompt_parts)

    def on_step(self, batch: Batch, seconds: float) -> None:
        times, rows = self._steps[batch.kind]
        times.observe(seconds)
        rows.observe(len(batch.rows))
        self._recent.read(self._clock())

    def on_events(self, events: Seq[TokenEvent]) -> None:
        now = self._clock()
        last_token_s = self._last_token_s
        waits: dict[tuple[float, int], int] = {}
        num_tokens = 0
        for event in events:
            key = (event.rid, event.index)
            if new := len(event.token_ids):
                num_tokens += new
                if (last := last_token_s.get(key)) is not None:
                    waits[last, new] = waits.get((last, new), 0) + 1
                elif (arrived := self._arrived_s.pop(key, None)) is not None:
                    self._first_token.observe(now - arrived)
                last_token_s[key] = now
            if event.finish is not None:
                self._forget(key, event)
        # Rows of one step got their last tokens together too, mostly. Forced tokens, several in an event, share a wait.
        for (last, new), count in waits.items():
            self._between_tokens.observe((now - last) / new, count * new)
        self._recent.count(generated=num_tokens)

    def _forget(self, key: tuple[str, int], event: TokenEvent) -> None:
        self._last_token_s.pop(key, None)
        self._arrived_s.pop(key, None)
        if event.receipt is not None and event.finish is not None and event.finish.kind != "abort":
            self._request.observe(event.receipt.e2e_s)

    def on_evicted(self, num_pages: int, seconds: float) -> None:
        self._eviction.observe(seconds)

    def on_grammar_compiled(self, seconds: float) -> None:
        self._grammar.observe(seconds)

    # --- the page ---------------------------------------------------------------------------------------------

    def render(self, info: EngineInfo, stats: EngineStats, model_name: str) -> str:
        """The page, in Prometheus' text format; `model_name` is every sample's label. Any thread may ask."""
        return generate_latest(_Page(self, info, stats, model_name)).decode()

    def histograms(self) -> dict[str, tuple[str, Mapping[str, Histogram]]]:
        """By name: what it measures, and the histogram of each kind ("" where there are no kinds)."""
        return {
            "time_to_first_token_seconds": ("From arrival to the first token.", {"": self._first_token}),
            "inter_token_latency_seconds": ("Between two tokens of a sample.", {"": self._between_tokens}),
            "e2e_request_latency_seconds": ("From arrival to the end; aborts are left out.", {"": self._request}),
            "queue_time_seconds": ("From arrival to the first step that works on a request.", {"": self._queue}),
            "eviction_duration_seconds": ("One eviction of cached pages.", {"": self._eviction}),
            "grammar_compilation_time_seconds": ("One compiled grammar.", {"": self._grammar}),
            "step_time_seconds": (
                "From a step's launch, or the end of the step before where that came later, to its result.",
                {kind: times for kind, (times, _) in self._steps.items()},
            ),
            "batch_rows": ("Sequences in a step.", {kind: rows for kind, (_, rows) in self._steps.items()}),
        }

    def prompt_parts(self) -> dict[str, int]:
        """Prompt tokens of all admitted requests, by what the cache had for them."""
        return dataclasses.asdict(self._parts)

    def recent_rates(self) -> tuple[float, float]:
        """Generated tokens a second and the share of prompt tokens found in the cache, of the last seconds."""
        return self._recent.rates(self._clock())


class _Recent:
    """Totals, remembered about once a second while the engine steps, for rates over the last `RATE_WINDOW_S`."""

    def __init__(self, now_s: float):
        self._totals = (0, 0, 0)  # generated, prompt, cached
        # Replaced, never changed: another thread may read it.
        self._readings = ((now_s, self._totals),)

    def count(self, *, generated: int = 0, prompt: int = 0, cached: int = 0) -> None:
        totals = self._totals
        self._totals = (totals[0] + generated, totals[1] + prompt, totals[2] + cached)

    def read(self, now_s: float) -> None:
        if now_s - self._readings[-1][0] >= 1:
            self._readings = (*self._readings[-RATE_WINDOW_S:], (now_s, self._totals))

    def rates(self, now_s: float) -> tuple[float, float]:
        readings = self._readings
        old = [reading for reading in readings if reading[0] <= now_s - RATE_WINDOW_S]
        at, before = old[-1] if old else readings[0]
        generated, prompt, cached = (new - old for new, old in zip(self._totals, before, strict=True))
        seconds = min(max(now_s - at, 1), RATE_WINDOW_S)
        return generated / seconds, cached / prompt if prompt else 0.0


class _Page(Collector):
    """One moment's metric families."""

    def __init__(self, metrics: EngineMetrics, info: EngineInfo, stats: EngineStats, model_name: str):
        self._metrics, self._info, self._stats, self._model_name = metrics, info, stats, model_name

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._counters_by_label()
        for name, (help_text, by_kind) in self._metrics.histograms().items():
            labels = ("model_name",) if "" in by_kind else ("model_name", "kind")
            family = HistogramMetricFamily(PREFIX + name, help_text, labels=labels)
            for kind, histogram in by_kind.items():
                histogram.add_to(family, (self._model_name, kind)[: len(labels)])
            yield family

    def _gauges(self) -> Iterator[Metric]:
        info, stats, cache = self._info, self._stats, self._stats.cache
        throughput, hit_rate = self._metrics.recent_rates()
        page_size = info.config.page_size
        num_used = cache.num_pages - cache.num_free - cache.num_evictable
        window = f"in the last {RATE_WINDOW_S} s"
        for name, help_text, value in (
            ("num_running_reqs", "Samples that are being generated.", stats.num_running),
            ("num_queue_reqs", "Samples that wait.", stats.num_waiting),
            ("num_grammar_queue_reqs", "Requests whose grammar is being compiled.", stats.num_grammar_queue),
            ("num_retracted_reqs", "Samples that gave way and wait to go on.", stats.num_preempted),
            ("num_used_tokens", "Room in the KV pool that running requests hold.", num_used * page_size),
            ("num_cached_tokens", "Tokens in the radix tree, held or not.", cache.num_cached * page_size),
            ("max_total_num_tokens", "Room in the KV pool.", cache.num_pages * page_size),
            ("token_usage", "Share of the KV pool that running requests hold.", num_used / cache.num_pages),
            ("gen_throughput", f"Tokens generated per second, {window}.", throughput),
            ("cache_hit_rate", f"Share of prompt tokens found in the cache, {window}.", hit_rate),
            ("kv_cache_memory_usage_gb", "Size of the KV pool in GiB.", info.kv_cache_bytes / 2**30),
            ("startup_time_seconds", "From the start of loading to the first step compiled.", info.startup_s),
        ):
            yield self._family(GaugeMetricFamily, name, help_text, value)

    def _counters(self) -> Iterator[Metric]:
        stats, totals = self._stats, self._stats.counters
        evicted = stats.cache.num_evicted_pages * self._info.config.page_size
        for name, help_text, value in (
            ("prompt_tokens_total", "Prompt tokens of admitted samples.", totals.prompt_tokens),
            ("cached_tokens_total", "Those found in the cache.", totals.cached_tokens),
            ("generation_tokens_total", "Tokens generated, forced ones included.", totals.generated_tokens),
            ("forced_tokens_total", "Tokens that a grammar forced, not sampled.", totals.forced_tokens),
            ("num_requests_total", "Samples that ended, however.", totals.num_finished),
            ("num_aborted_requests_total", "Samples that ended by an abort.", totals.num_aborted),
            ("num_retracted_requests_total", "Times that a sample gave way for want of pages.", totals.num_preemptions),
            ("evicted_tokens_total", "Cached tokens that gave way.", evicted),
            ("late_compile_events_total", "Steps compiled while serving: a bug.", stats.num_late_compiles),
            ("integrity_failures_total", "Pages not accounted for: a bug.", stats.num_integrity_failures),
        ):
            yield self._family(CounterMetricFamily, name, help_text, value)

    def _counters_by_label(self) -> Iterator[Metric]:
        for name, label, help_text, values in (
            ("compile_events_total", "kind", "Compiled parts of steps.", self._stats.num_compiled_by_kind),
            ("prompt_parts_tokens_total", "part", "Prompt tokens by what the cache had.", self._metrics.prompt_parts()),
        ):
            family = CounterMetricFamily(PREFIX + name, help_text, labels=("model_name", label))
            for value, count in values.items():
                family.add_metric((self._model_name, value), count)
            yield family

    def _family(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, help_text: str, value: float
    ) -> Metric:
        family = kind(PREFIX + name, help_text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family
