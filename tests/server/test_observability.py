"""The dashboard and the docs against the page: what they name is there, and what is there is named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sgjax_server.middleware.http_metrics import HttpMetrics

from sgjax.cache.manager import CacheStats
from sgjax.engine.batch import SchedulerCounters
from sgjax.engine.info import EngineStats
from sgjax.engine.metrics import EngineMetrics
from sgjax.types import PromptParts, Receipt

from .fakes import FakeEngine

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "server/deploy/grafana/sgjax.json").read_text())
DOCS = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
STATS = EngineStats(
    num_running=1,
    num_waiting=2,
    num_preempted=0,
    num_grammar_queue=0,
    counters=SchedulerCounters(),
    cache=CacheStats(64, 64, 0, 0, 0, 0, 0),
    num_steps_compiled=2,
    num_compiled_by_kind={"forward": 1, "sample": 1},
    all_compiled=True,
    num_late_compiles=0,
    num_integrity_failures=0,
    weight_version="default",
    is_paused=False,
)


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Every sample's name on a page, with its labels."""
    http = HttpMetrics()
    http.requests.labels("GET", "/health", "200").inc()
    page = http.render(engine_up=True) + EngineMetrics().render(FakeEngine().info, STATS, "fake")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def queries() -> list[str]:
    (variable,) = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["name"] == "model"]
    return [variable, *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])]


def test_every_metric_exists(labels: dict[str, set[str]]):
    asked = {name for query in queries() for name in re.findall(r"sgjax:\w+", query)}
    assert asked <= labels.keys()
    assert len(asked) > 25


@pytest.mark.parametrize("query", queries())
def test_every_label_exists(query: str, labels: dict[str, set[str]]):
    common = set.intersection(*(labels[name] for name in re.findall(r"sgjax:\w+", query)))
    for found in re.findall(r"by \(([\w, ]+)\)", query):
        assert set(found.split(", ")) <= common
    for name, matchers in re.findall(r"(sgjax:\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= labels[name]


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_docs_name_every_metric_and_its_labels(labels: dict[str, set[str]]):
    told: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (`.*?) \|", DOCS.split("## Receipts")[0], re.MULTILINE):
        for name, names in re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", row):
            told[name] = set(names.split(",")) if names else set()
    found = {
        re.sub("_(bucket|count|sum)$", "", name.removeprefix("sgjax:")): names - {"model_name", "le"}
        for name, names in labels.items()
    }
    assert told == found


def test_docs_name_every_field_of_a_receipt():
    section = DOCS.split("## Receipts")[1].split("\n## ")[0]
    fields = {field.name for kind in (Receipt, PromptParts) for field in dataclasses.fields(kind)}
    assert fields <= set(re.findall(r"`(\w+)`", section))
