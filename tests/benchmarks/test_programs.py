"""The workloads of `benchmarks.programs`, tiny, on a tiny random model: their counts and answers, not their times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sgjax
from benchmarks.programs import WORKLOADS, in_process, over_http
from benchmarks.programs.__main__ import table
from benchmarks.programs.best import Sent, best_cached

from ..engine.conftest import tiny_model as tiny_model
from ..engine.conftest import tiny_settings as tiny_settings
from ..serving import served

PAGE_SIZE = 16
TOLERANCE = 0.04


@pytest.fixture(scope="module")
def settings(tiny_settings: dict) -> dict:
    return {**tiny_settings, "max_running_requests": 4, "max_total_tokens": 8192}


@pytest.fixture(scope="module")
def engine(settings: dict) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(**settings) as engine:
        yield engine
        if engine.is_alive:  # the server closes it
            engine.check()


@pytest.fixture(scope="module")
def uncached(settings: dict) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(**settings, disable_radix_cache=True) as engine:
        yield engine
        engine.check()


@pytest.fixture(scope="module")
def url(engine: sgjax.Engine) -> Iterator[str]:
    with served(engine) as url:
        yield url
        engine.check()


@pytest.mark.parametrize("name", WORKLOADS)
def test_hit_rates_are_near_the_best(name: str, engine: sgjax.Engine, uncached: sgjax.Engine):
    workload = WORKLOADS[name]
    batch = workload.batch(small=True)
    cached, without = (in_process.run(workload, each, batch) for each in (engine, uncached))
    counts = cached.counts(PAGE_SIZE)
    assert counts["best_hit_rate_pages"] - TOLERANCE <= counts["hit_rate"] <= counts["best_hit_rate_pages"]
    assert counts["best_hit_rate_pages"] <= counts["best_hit_rate_tokens"]
    assert counts["hit_rate"] > 0.4
    assert without.counts(PAGE_SIZE)["hit_rate"] == 0
    assert len(without.sent) <= len(cached.sent)
    assert cached.answers == without.answers


@pytest.mark.parametrize("name", WORKLOADS)
def test_plain_calls_do_the_same_work(name: str, url: str):
    workload = WORKLOADS[name]
    batch = workload.batch(small=True)
    program = over_http.run_program(workload, url, batch)
    plain = over_http.run_plain(workload, url, batch)
    assert plain.counts is not None
    assert plain.counts["requests"] >= len(batch)
    for ours, theirs in zip(program.answers, plain.answers, strict=True):
        assert type(ours) is type(theirs)
        assert not isinstance(ours, list) or len(ours) == len(theirs)
    if name in ("few_shot", "json_decoding"):
        assert program.answers == plain.answers


@pytest.mark.parametrize("name", WORKLOADS)
def test_arguments_come_from_the_seed(name: str):
    workload = WORKLOADS[name]
    assert workload.batch(small=True) == workload.batch(small=True)
    assert workload.batch(small=True) != workload.batch(small=True, seed=1)
    batch = workload.batch(small=False)
    assert len(batch) == workload.full.programs
    assert len({repr(arguments) for arguments in batch}) == len(batch), "two runs are the same"


def test_the_best_hit_rate():
    first = Sent(tuple(range(40)), (100,), None, 0)
    assert best_cached([first], 16) == 0
    assert best_cached([first, first], 16) == 32
    assert best_cached([first, first], 1) == 39
    whole_pages = Sent(tuple(range(32)), (), None, 0)
    assert best_cached([first, whole_pages], 16) == 16, "the last token is always computed"
    other = Sent((*range(16), *range(50, 66)), (), None, 0)
    assert best_cached([first, other], 16) == 16
    same_page_elsewhere = Sent((*range(50, 66), *range(16, 40)), (), None, 0)
    assert best_cached([first, same_page_elsewhere], 16) == 0, "what stands before a page is part of it"
    scored = Sent(tuple(range(40)), (), 20, 0)
    assert best_cached([first, scored], 16) == 16
    assert best_cached([first, scored], 1) == 19


def test_generated_tokens_can_be_found():
    later = Sent(tuple(range(40)), (), None, 0)
    assert best_cached([Sent(tuple(range(10)), tuple(range(10, 32)), None, 0), later], 16) == 32
    assert best_cached([Sent(tuple(range(10)), tuple(range(10, 31)), None, 0), later], 16) == 16
    assert best_cached([Sent(tuple(range(10)), (), None, 0), later], 1) == 10


def test_the_table_has_a_row_for_each_workload():
    figure = dict.fromkeys(
        ("hit_rate", "best_hit_rate_pages", "best_hit_rate_tokens", "speedup", "gain_over_plain",
         "gain_over_plain_on_server"), 0.5
    )  # fmt: skip
    lines = table({"few_shot": figure, "judge": figure}).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["workload", "---", "few_shot", "judge"]
    assert lines[-1].count("50.0%") == 3
