"""Random programs do the same in threads, without threads, streaming, and replayed from their record."""

from __future__ import annotations

import zlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import sgjax as sgl
from sgjax.lang.replay import replay

from .fakes import FakeBackend

NAMES = st.sampled_from(["a", "b", "c"])
TEXT = st.text(st.sampled_from("xyz \n"), min_size=1, max_size=4).map(lambda text: ("text", text))
GEN = NAMES.map(lambda name: ("gen", name))


def compound(inner: st.SearchStrategy) -> st.SearchStrategy:
    steps = st.lists(inner, max_size=4)
    return st.one_of(
        st.tuples(st.just("turn"), st.sampled_from(["user", "assistant"]), st.lists(TEXT | GEN, max_size=3)),
        st.tuples(st.just("fork"), st.lists(steps, min_size=1, max_size=3), st.sampled_from(["gather", "concat", ""])),
        st.tuples(st.just("when"), NAMES, steps, steps),
        st.tuples(st.just("repeat"), st.integers(0, 3), steps),
        st.tuples(st.just("scope"), steps),
    )


STEPS = st.lists(st.recursive(TEXT | GEN, compound, max_leaves=12), max_size=6)
MODES = {"gather": "gather_variable", "concat": "concate_and_append"}


def run_steps(s: Any, steps: Any) -> None:
    for step in steps:
        match step:
            case ("text", text):
                s += text
            case ("gen", name):
                s += sgl.gen(name)
            case ("turn", role, parts):
                with getattr(s, role)():
                    run_steps(s, parts)
            case ("fork", branches, join):
                forks = s.fork(len(branches))
                for fork, branch in zip(forks, branches, strict=True):
                    run_steps(fork, branch)
                if join:
                    forks.join(MODES[join])
            case ("when", name, then, otherwise):
                if name in s:
                    s.when(sgl.contains(s[name], "1"), lambda s: run_steps(s, then), lambda s: run_steps(s, otherwise))
            case ("repeat", times, body):
                s.repeat(times, lambda s: run_steps(s, body), until=lambda s: "a" in s and sgl.contains(s["a"], "2"))
            case ("scope", body):
                with s.var_scope("scope"):
                    run_steps(s, body)


def answer(prompt, sampling) -> str:
    return str(zlib.crc32(prompt.text.encode()) % 1000)


def outcome(state: sgl.ProgramState) -> tuple[Any, ...]:
    assert state.error() is None
    names = [name for name in ("a", "b", "c", "scope") if name in state]
    return (state.text(), state.messages(), {name: state[name] for name in names}, state.usage())


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_all_ways_to_run_agree(steps: Any):
    program = sgl.function(lambda s: run_steps(s, steps))
    expected = outcome(program.run(backend=FakeBackend(answer), use_thread=False))
    assert outcome(program.run(backend=FakeBackend(answer))) == expected
    streamed = program.run(backend=FakeBackend(answer), stream=True)
    assert outcome(streamed) == expected
    (batched,) = program.run_batch([{}], backend=FakeBackend(answer))
    assert outcome(batched) == expected


# In a record both branches of `when` are seen, so a name may be known that a run has not set: no `when`, no `until`.
def is_plain(steps: Any) -> bool:
    text = repr(steps)
    return "'when'" not in text and "'repeat'" not in text


@settings(max_examples=100, deadline=None)
@given(STEPS.filter(is_plain))
def test_a_record_agrees(steps: Any):
    function = sgl.function(lambda s: run_steps(s, steps))
    expected = outcome(function.run(backend=FakeBackend(answer), use_thread=False))
    state = sgl.function(lambda s: None).run(backend=FakeBackend(answer))
    replay(function.trace(needs_all=True), {}, state)
    assert outcome(state) == expected
