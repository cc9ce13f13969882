"""Every example on the embedded model: what it prints, and what the prefix cache spared it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import sgjax
from sgjax.lang.backends.engine import EngineBackend

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE_SIZE = 16
MAX_CHOICES = 4
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "backend")


class CountingBackend(EngineBackend):
    """Keeps the meta information of every request, by kind, in the order in which they end."""

    def __init__(self, engine: sgjax.Engine):
        super().__init__(engine)
        self.metas: dict[str, list[dict[str, Any]]] = {"generate": [], "prefill": [], "select": []}
        self._lock = threading.Lock()

    def _keep(self, kind: str, meta: dict[str, Any]) -> None:
        with self._lock:
            self.metas[kind].append(meta)

    def generate(self, prompt, sampling):
        completions = super().generate(prompt, sampling)
        self._keep("generate", completions[0].meta_info)
        return completions

    def stream(self, prompt, sampling):
        completion = None
        for completion in super().stream(prompt, sampling):
            yield completion
        assert completion is not None
        self._keep("generate", completion.meta_info)

    def prefill(self, prompt):
        meta = super().prefill(prompt)
        self._keep("prefill", meta)
        return meta

    def select(self, prompt, choices, method):
        decision = super().select(prompt, choices, method)
        self._keep("select", decision.meta_info)
        return decision

    def total(self, field: str) -> int:
        return sum(meta[field] for metas in self.metas.values() for meta in metas)

    def prompt_lengths(self) -> list[int]:
        return [meta["prompt_tokens"] for meta in self.metas["generate"]]


@pytest.fixture(scope="module")
def engine(embedded_model_path: Path) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(
        str(embedded_model_path),
        dtype="float32",  # in bfloat16 near ties are decided by the shapes of a step
        context_length=1024,
        max_running_requests=4,
        max_total_tokens=8192,
        chunked_prefill_size=256,
        skip_warmup=True,
    ) as engine:
        yield engine
        engine.check()


class Run(NamedTuple):
    """What an example did."""

    module: ModuleType
    result: Any
    metas: CountingBackend
    printed: str


class Runs:
    """Runs examples on one engine; the first run of each is kept."""

    def __init__(self, engine: sgjax.Engine):
        self._engine = engine
        self.first = functools.cache(self.run)

    def run(self, name: str) -> Run:
        module = importlib.import_module(name)
        backend, printed = CountingBackend(self._engine), io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = module.main(backend)
        return Run(module, result, backend, printed.getvalue())


@pytest.fixture(scope="module")
def runs(engine: sgjax.Engine) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
        yield Runs(engine)


def whole_pages(num_tokens: int) -> int:
    return num_tokens // PAGE_SIZE * PAGE_SIZE


def test_multi_turn_chat(runs: Runs):
    """Each turn computes its question and the last answer, of which the cache has all whole pages."""
    _, state, backend, _ = runs.first("multi_turn_chat")
    metas = backend.metas["generate"]
    assert len(metas) == 4
    assert metas[0]["cached_tokens"] == 0
    for before, after in itertools.pairwise(metas):
        # The last token that was generated has not been through the model.
        assert after["cached_tokens"] >= whole_pages(before["prompt_tokens"] + before["completion_tokens"] - 1)
    assert state.usage().cached_tokens == backend.total("cached_tokens")
    assert "Paris" in state["answer_0"]
    assert "Rome" in state["answer_3"]


def test_few_shot_json(runs: Runs):
    """The solved examples are computed once; every answer follows the schema."""
    module, states, backend, _ = runs.first("few_shot_json")
    (prefix,) = backend.metas["prefill"]
    assert (prefix["cached_tokens"], prefix["computed_tokens"]) == (0, prefix["prompt_tokens"])
    assert len(backend.metas["generate"]) == len(states) == len(module.SENTENCES)
    for meta in backend.metas["generate"]:
        assert meta["cached_tokens"] >= whole_pages(prefix["prompt_tokens"])
    people = [json.loads(state["json"]) for state in states]
    assert all(list(person) == module.SCHEMA["required"] for person in people)
    assert [person["age"] for person in people] == [34, 57, 29, 45]
    assert [person["job"] for person in people] == ["baker", "teacher", "pilot", "doctor"]


def test_tree_of_thought(runs: Runs):
    """Every fork computes its parent once, for all of its branches."""
    module, state, backend, _ = runs.first("tree_of_thought")
    ideas, plans = module.NUM_IDEAS, module.NUM_IDEAS * module.NUM_PLANS
    assert len(backend.metas["prefill"]) == 1 + ideas
    assert len(backend.metas["generate"]) == ideas + plans
    assert len(backend.metas["select"]) == plans
    shortest = min(meta["prompt_tokens"] for meta in backend.metas["prefill"])
    assert all(meta["cached_tokens"] >= whole_pages(shortest) for meta in backend.metas["generate"])
    for meta in backend.metas["select"]:
        # Of two choices the second at least finds the whole prompt before it; the first, all but the plan's last page.
        assert meta["computed_tokens"] <= 4 * PAGE_SIZE
    assert all(end["verdict"] in module.VERDICTS for end in state.ret_value)
    assert len({end["plan"] for end in state.ret_value}) > 1


def test_branch_solve_merge(runs: Runs):
    """The essay is computed once, though eight requests and sixteen scored choices begin with it."""
    module, state, backend, _ = runs.first("branch_solve_merge")
    (parent,) = backend.metas["prefill"]
    assert parent["computed_tokens"] == parent["prompt_tokens"] > 150
    assert len(backend.metas["generate"]) == len(module.SIDES)
    assert len(backend.metas["select"]) == len(module.SIDES) + 1
    num_requests = len(module.SIDES) + len(module.VERDICTS) * (len(module.SIDES) + 1)
    assert backend.total("cached_tokens") >= num_requests * whole_pages(parent["prompt_tokens"])
    assert {*state["verdict"], state["overall"]} <= set(module.VERDICTS)
    assert len(state["reason"]) == len(module.SIDES)


def test_react_agent(runs: Runs):
    """It looks up both cities, then answers; each step finds all of the steps before it."""
    _, state, backend, _ = runs.first("react_agent")
    assert state["action_0"].strip() == "lookup[Ghent]"
    assert state["action_1"].strip() == "lookup[Graz]"
    assert state.ret_value == "Graz"
    lengths = backend.prompt_lengths()
    assert len(lengths) == 6
    assert lengths == sorted(lengths)
    for before, meta in zip(lengths, backend.metas["generate"][1:], strict=False):
        assert meta["cached_tokens"] >= whole_pages(before)


def test_tip_suggestion(runs: Runs):
    """Three explanations share the question and the list of tips."""
    module, state, backend, _ = runs.first("tip_suggestion")
    (parent,) = backend.metas["prefill"]
    assert len(backend.metas["generate"]) == len(module.TIPS) + 1
    for meta in backend.metas["generate"]:
        assert meta["cached_tokens"] >= whole_pages(parent["prompt_tokens"])
    assert all(state["detail"])
    assert state["summary"]


def test_shared_documents(runs: Runs):
    """Questions about the same documents share them; all share the example."""
    module, states, backend, _ = runs.first("shared_documents")
    found = [module.retrieve(question) for question in module.QUESTIONS]
    (prefix,) = backend.metas["prefill"]
    num_shared = len(found) - len(set(found))
    assert num_shared > 0, "no two questions have the same documents"
    start = whole_pages(prefix["prompt_tokens"])
    assert all(meta["cached_tokens"] >= start for meta in backend.metas["generate"])
    assert sum(meta["cached_tokens"] >= start + 3 * PAGE_SIZE for meta in backend.metas["generate"]) >= num_shared
    assert "4 euros" in states[0]["answer"]
    assert "Monday" in states[1]["answer"]
    assert "first Sunday" in states[2]["answer"]


def test_streaming_story(runs: Runs):
    """The text comes in pieces, and the title's request finds the story."""
    _, state, backend, printed = runs.first("streaming_story")
    story, title = backend.metas["generate"]
    assert title["cached_tokens"] >= whole_pages(story["prompt_tokens"] + story["completion_tokens"] - 1)
    assert printed.startswith(state["story"])
    assert f'Title: "{state["title"]}' in printed


@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_the_cache(name: str, runs: Runs):
    """A second run finds nearly all of its prompts, and says the same."""
    first, second = runs.first(name), runs.run(name)
    assert _without_counts(first.printed) == _without_counts(second.printed)
    assert second.metas.total("prompt_tokens") == first.metas.total("prompt_tokens")
    assert second.metas.total("cached_tokens") > first.metas.total("cached_tokens")
    num_prompts = sum(map(len, second.metas.metas.values())) + MAX_CHOICES * len(second.metas.metas["select"])
    computed = second.metas.total("prompt_tokens") - second.metas.total("cached_tokens")
    assert computed <= num_prompts * (PAGE_SIZE + 8)


def _without_counts(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "cached" not in line]


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(NAMES) <= tested
