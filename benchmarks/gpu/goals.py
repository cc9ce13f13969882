"""What a run should reach on one H100, beside the best that is published of other engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.gpu.workloads import Decode, Prefill, cascade, offline

Row = dict[str, Any]


class Rows:
    """The figures of a run by name and implementation. What was not measured is None, and so is what is made of it."""

    def __init__(self, rows: list[Row]):
        self._rows = {(row["name"], row.get("impl", "")): row for row in rows}

    def get(self, name: str, field: str, impl: str = "sgjax") -> float | None:
        return self._rows.get((name, impl), {}).get(field)


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


class Goal(NamedTuple):
    """A figure to reach.

    Attributes:
      figure: takes it from the rows, which `table.derive` has completed.
      at_least, at_most: one of them is None.
      unit: of figure and bounds; "s" is printed in what reads best.
      known: the best that is known of others, with what it was measured on if that was no H100.
    """

    what: str
    figure: Callable[[Rows], float | None]
    at_least: float | None
    at_most: float | None
    unit: str
    known: str

    def reached(self, rows: Rows) -> bool | None:
        figure = self.figure(rows)
        if figure is None:
            return None
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)


_CONTIGUOUS = ("flash-attn3-jax", "sdpa")
_EXTEND = Prefill(1024, 8192).name


def _figure(name: str, field: str, impl: str = "sgjax") -> Callable[[Rows], float | None]:
    return lambda rows: rows.get(name, field, impl)


def _times(slow: str, fast: str, slow_impl: str = "sgjax", fast_impl: str = "sgjax") -> Callable[[Rows], float | None]:
    """How many times as long the first takes."""
    return lambda rows: ratio(rows.get(slow, "seconds", slow_impl), rows.get(fast, "seconds", fast_impl))


def _of_contiguous(rows: Rows) -> float | None:
    """Our speed through pages, of the best that a peer has for the same keys in one piece."""
    peers = [rows.get(_EXTEND, "tflop_per_s", impl) for impl in _CONTIGUOUS]
    return ratio(rows.get(_EXTEND, "tflop_per_s"), max(filter(None, peers), default=None))


def _at_least(what: str, figure: Callable[[Rows], float | None], bound: float, unit: str, known: str = "") -> Goal:
    return Goal(what, figure, bound, None, unit, known)


def _at_most(what: str, figure: Callable[[Rows], float | None], bound: float, unit: str, known: str = "") -> Goal:
    return Goal(what, figure, None, bound, unit, known)


def _decode_fraction(case: Decode, bound: float, known: str) -> Goal:
    return _at_least(case.name, _figure(case.name, "fraction_of_ceiling"), bound, "of the read bandwidth", known)


def _decode_time(case: Decode, bound_s: float, known: str) -> Goal:
    return _at_most(case.name, _figure(case.name, "seconds"), bound_s, "s", known)


def _prefill_rate(case: Prefill, bound: float, known: str) -> Goal:
    return _at_least(case.name, _figure(case.name, "tflop_per_s"), bound, "TFLOP/s", known)


_4K, _8K, _SHARED, _OFFLINE = Decode(64, 4096), Decode(64, 8192), cascade(tiny=False).name, offline(tiny=False)[0].name
GOALS = (
    _decode_fraction(_4K, 0.85, "FlashInfer 0.82"),
    _decode_fraction(_8K, 0.90, "FlashInfer 0.88"),
    _at_most("pages of 16 against 64", _times(_4K._replace(page_size=16).name, _4K.name), 1.05, "times"),
    _decode_time(Decode(1, 1024), 11e-6, "10.8 us"),
    _decode_time(Decode(8, 4096), 48e-6, "41.6 us on an H200"),
    _at_least("bf16 against FP8", _times(_8K.name, _8K._replace(kv_dtype="float8_e4m3fn").name), 1.8, "times", "1.84"),
    _prefill_rate(Prefill(8192, 8192), 560, "FlashAttention-3 602"),
    _prefill_rate(Prefill(16384, 16384), 590, "FlashAttention-3 616"),
    _at_least(f"{_EXTEND}, against contiguous", _of_contiguous, 0.92, "times"),
    _at_least("cascade against flat", _times(_SHARED, _SHARED, "flat", "cascade"), 15, "times", "26 to 31"),
    _at_most("step 8B, batch 1", _figure("step 8B, batch 1", "seconds"), 5.7e-3, "s", "SGLang 6.3, vLLM 6.44 ms"),
    _at_least(_OFFLINE, _figure(f"offline {_OFFLINE}", "tokens_per_s"), 7500, "tok/s", "TensorRT-LLM, FP8: 15,220"),
    *(
        _at_most(f"idle, batch {n}", _figure(f"engine step, batch {n}", "idle_fraction", ""), 0.01, "of the step")
        for n in (1, 8, 64, 256)
    ),
)


def judge(rows: list[Row]) -> list[dict[str, Any]]:
    """Every goal with the run's figure, or None, and whether it was reached."""
    by_name = Rows(rows)
    return [{**goal._asdict(), "figure": goal.figure(by_name), "reached": goal.reached(by_name)} for goal in GOALS]
