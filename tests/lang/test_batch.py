"""`run_batch`: bounded, ordered, one failure at a time."""

from __future__ import annotations

import threading

import pytest

import sgjax as sgl

from .fakes import FakeBackend


@sgl.function
def ask(s, topic, question):
    s += "Answer questions.\n" + f"About {topic}: " + question + sgl.gen("answer")
    return topic


BATCH = [
    {"topic": "b", "question": "1"},
    {"topic": "a", "question": "2"},
    {"topic": "b", "question": "0"},
    {"topic": "a", "question": "1"},
]


def test_results_come_in_order_and_neighbours_share_a_prefix():
    backend = FakeBackend(lambda prompt, sampling: prompt.text[-1])
    states = ask.run_batch(BATCH, backend=backend, num_threads=1, max_new_tokens=3)
    assert [state["answer"] for state in states] == ["1", "2", "0", "1"]
    assert [state.ret_value for state in states] == ["b", "a", "b", "a"]
    assert [asked.text for asked in backend.of_kind("prefill")] == ["Answer questions.\nAbout "]
    asked = backend.of_kind("generate")
    assert [one.text[-4:] for one in asked] == ["a: 1", "a: 2", "b: 0", "b: 1"]
    assert {one.sampling.max_new_tokens for one in asked if one.sampling} == {3}


def test_no_more_run_at_a_time_than_wanted():
    lock, running, most = threading.Lock(), [0], [0]

    def answer(prompt, sampling):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.005)
        with lock:
            running[0] -= 1
        return "x"

    ask.run_batch(BATCH * 4, backend=FakeBackend(answer), num_threads=3)
    assert 1 <= most[0] <= 3


def test_states_are_yielded_in_order_as_they_are_done():
    backend = FakeBackend(lambda prompt, sampling: prompt.text[-1])
    states = ask.run_batch(BATCH, backend=backend, generator_style=True, progress_bar=False)
    assert [state["answer"] for state in states] == ["1", "2", "0", "1"]


def test_leaving_early_starts_no_more():
    backend = FakeBackend()
    states = ask.run_batch(BATCH * 10, backend=backend, num_threads=1, generator_style=True)
    next(states)
    states.close()
    assert len(backend.of_kind("generate")) < 40


def test_a_failure_is_met_where_it_is_read():
    def answer(prompt, sampling):
        if prompt.text.endswith("0"):
            raise OSError("no answer")
        return "x"

    states = ask.run_batch(BATCH, backend=FakeBackend(answer))
    assert [type(state.error()) for state in states] == [type(None), type(None), OSError, type(None)]
    with pytest.raises(sgl.ProgramError, match="no answer"):
        states[2]["answer"]


def test_the_common_prefix_counts_in_the_run_that_starts_first():
    backend = FakeBackend()
    states = ask.run_batch(BATCH, backend=backend)
    assert [state.usage().num_requests for state in states] == [1, 1, 1, 2]
    total = sum((state.usage() for state in states), sgl.Usage())
    assert total.prompt_tokens == sum(len(asked.text) for asked in backend.asked)


def test_a_function_that_hides_what_its_runs_share(caplog: pytest.LogCaptureFixture):
    @sgl.function
    def loops(s, words):
        s += "Words: "
        for word in words:
            s += word
        s += sgl.gen("x")

    @sgl.function
    def asks_first(s, word):
        s += word + sgl.gen("x")
        if s["x"] == "ok":
            s += "!"

    batch = [(["a"],), (["b"],)]
    for _ in range(2):
        loops.run_batch(batch, backend=FakeBackend())
        asks_first.run_batch([("a",), ("b",)], backend=FakeBackend())
    (record,) = caplog.records
    assert "run_batch shares of loops only what comes before" in record.getMessage()
    assert "a loop over it needs the value" in record.getMessage()


def test_a_wrong_item():
    with pytest.raises(TypeError, match="takes 2 arguments"):
        ask.run_batch([("a", "b", "c")], backend=FakeBackend())
    with pytest.raises(TypeError, match="by name or in order"):
        ask.run_batch(["ab"], backend=FakeBackend())
    (state,) = ask.run_batch([{"topic": "a"}], backend=FakeBackend())
    assert isinstance(state.error(), TypeError)
    assert ask.run_batch([], backend=FakeBackend()) == []


@pytest.mark.parametrize("num_threads", [0, -3])
def test_too_few_threads(num_threads: int):
    with pytest.raises(ValueError, match=f"at least 1, not {num_threads}"):
        ask.run_batch(BATCH, backend=FakeBackend(), num_threads=num_threads)


def test_a_failing_cache_does_not_stop_the_batch():
    class NoCache(FakeBackend):
        def prefill(self, prompt):
            raise OSError("no cache")

    states = ask.run_batch(BATCH, backend=NoCache())
    assert [state["answer"] for state in states] == ["ok"] * 4


def test_cache_a_program():
    backend = FakeBackend()
    assert ask.cache(backend) == "Answer questions.\nAbout "
    assert [asked.text for asked in backend.asked] == ["Answer questions.\nAbout "]
    assert ask.bind(topic="x").cache(backend) == "Answer questions.\nAbout x: "


def test_a_progress_bar(capsys: pytest.CaptureFixture[str]):
    ask.run_batch(BATCH, backend=FakeBackend(), progress_bar=True)
    assert "4/4" in capsys.readouterr().err
