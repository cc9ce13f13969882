"""Failures surface where a value is read, with their cause, and harm nobody else."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

import sgjax as sgl
from sgjax.lang import ProgramState
from sgjax.lang.backends.base import Completion

from .fakes import FakeBackend


class Broken(Exception):
    pass


def broken_at(word: str):
    def answer(prompt, sampling) -> str:
        if prompt.text.endswith(word):
            raise Broken(f"cannot go on from {word}")
        return "fine"

    return answer


def started(backend: FakeBackend, **options) -> ProgramState:
    return sgl.function(lambda s: None).run(backend=backend, **options)


@pytest.mark.parametrize("use_thread", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_failed_generation(use_thread: bool, stream: bool):
    backend = FakeBackend(broken_at("bad"))
    s = started(backend, use_thread=use_thread, stream=stream)
    s += "good" + sgl.gen("a") + "bad" + sgl.gen("b") + sgl.gen("c")
    assert s["a"] == "fine"
    for read in (lambda: s["b"], lambda: s["c"], s.text, s.messages, lambda: s.get_meta_info("b")):
        with pytest.raises(sgl.ProgramError, match=r"gen\('b'\) failed: Broken: cannot go on") as caught:
            read()
        assert isinstance(caught.value.__cause__, Broken)
    assert isinstance(s.error(), Broken)
    assert len(backend.asked) == 2
    s += sgl.gen("d")
    with pytest.raises(sgl.ProgramError):
        s["d"]


def test_an_unknown_variable_names_the_known():
    s = started(FakeBackend())
    s += sgl.gen("b") + sgl.gen("a")
    with pytest.raises(KeyError, match="no variable 'x'; known are: a, b"):
        s["x"]
    assert s.error() is None


def test_a_failed_branch_leaves_its_parent_alone():
    s = started(FakeBackend(broken_at("1")))
    s += "go"
    forks = s.fork(3)
    forks += lambda i: f"{i}"
    forks += sgl.gen("x") + sgl.gen("y")
    forks.join()
    with pytest.raises(sgl.ProgramError, match="variable 'x' has no value"):
        s["x"]
    assert s.text() == "go"
    assert s.error() is None
    assert forks[2]["x"] == "fine"
    assert isinstance(forks[1].error(), Broken)


def test_a_failed_branch_fails_the_concatenation():
    s = started(FakeBackend(broken_at("1")))
    forks = s.fork(2)
    forks += lambda i: f"{i}"
    forks += sgl.gen("x")
    forks.join("concate_and_append")
    with pytest.raises(sgl.ProgramError, match="join failed"):
        s.text()


def test_branches_of_a_failed_parent_fail():
    backend = FakeBackend(broken_at("bad"))
    backend.gate.clear()
    s = started(backend)
    s += "bad" + sgl.gen("a")
    forks = s.fork(2)
    forks += sgl.gen("b")
    backend.gate.set()
    for fork in forks:
        with pytest.raises(sgl.ProgramError, match="cannot go on"):
            fork["b"]
    late = s.fork(1)
    with pytest.raises(sgl.ProgramError):
        late[0].text()


def test_what_the_function_raises_is_raised_by_run():
    @sgl.function
    def program(s):
        s += "text" + sgl.gen("a")
        raise Broken("in the body")

    with pytest.raises(Broken):
        program.run(backend=FakeBackend())


def test_what_a_streaming_function_raises_is_raised_by_reading():
    @sgl.function
    def program(s):
        s += sgl.gen("a")
        s.sync()
        raise Broken("in the body")

    state = program.run(backend=FakeBackend(["abc"]), stream=True)
    assert state["a"] == "abc"
    assert isinstance(state.error(), Broken)
    with pytest.raises(sgl.ProgramError, match="the program program failed"):
        list(state.text_iter())
    with pytest.raises(sgl.ProgramError, match="in the body"):
        state["b"]


def test_turns_must_fit():
    s = started(FakeBackend())
    s += sgl.user_begin() + sgl.assistant_begin()
    with pytest.raises(sgl.ProgramError, match="cannot begin inside a turn of the user"):
        s.text()
    s = started(FakeBackend())
    s += sgl.user_begin() + sgl.assistant_end()
    assert "the open turn is the user's" in str(s.error())


def test_an_aborted_request_is_an_error():
    class Aborting(FakeBackend):
        def generate(self, prompt, sampling):
            (completion,) = super().generate(prompt, sampling)
            completion.meta_info["finish_reason"] = {"type": "abort", "message": "out of luck"}
            return [completion]

    s = started(Aborting())
    s += sgl.gen("x")
    with pytest.raises(sgl.ProgramError, match="out of luck"):
        s["x"]


def test_join_takes_two_modes():
    forks = started(FakeBackend()).fork(1)
    with pytest.raises(ValueError, match="gather_variable"):
        forks.join("something")
    with pytest.raises(ValueError, match="2 expressions for 1 branches"):
        forks += ["a", "b"]


def test_an_interrupt_is_not_kept():
    def answer(prompt, sampling):
        raise KeyboardInterrupt

    s = started(FakeBackend(answer), use_thread=False)
    with pytest.raises(KeyboardInterrupt):
        s += sgl.gen("x")
    assert isinstance(s.error(), KeyboardInterrupt)


def test_what_is_no_program():
    async def later(s):
        pass

    with pytest.raises(TypeError, match="plain function"):
        sgl.function(later)
    with pytest.raises(TypeError, match="first parameter"):
        sgl.function(lambda: None)


@pytest.mark.parametrize("size", [-1, 1.5, "2", None])
def test_a_fork_into_what_is_no_number(size: Any):
    s = started(FakeBackend())
    with pytest.raises(ValueError, match="number of branches"):
        s.fork(size)
    forks = s.fork(0)
    forks.join()
    assert (len(forks), s.text()) == (0, "")


def test_a_failed_program_ends_what_it_streams():
    """Its requests are given up, and the thread with them."""
    first_piece, ended = threading.Event(), threading.Event()

    class Endless(FakeBackend):
        def stream(self, prompt, sampling):
            try:
                for size in itertools.count(1):
                    yield Completion("a" * size, {})
                    first_piece.set()
            finally:
                ended.set()

    @sgl.function
    def program(s):
        s += sgl.gen("x") + sgl.gen("y")
        assert first_piece.wait(10)
        raise Broken("in the body")

    state = program.run(backend=Endless(), stream=True)
    with pytest.raises(sgl.ProgramError, match="in the body"):
        state["x"]
    assert ended.wait(10)
    assert isinstance(state.error(), Broken)


def test_what_leaves_a_turn_closes_it():
    @sgl.function
    def program(s):
        for text in ("bad", "good"):
            try:
                with s.user(), s.var_scope(text):
                    s += text
                    if text == "bad":
                        raise OSError
            except OSError:
                pass

    state = program.run(backend=FakeBackend())
    assert [message["content"] for message in state.messages()] == ["bad", "good"]
    assert state["bad"] == "bad"
