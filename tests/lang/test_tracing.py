"""A program is recorded, and the record does what the program does."""

from __future__ import annotations

import contextlib

import pytest

import sgjax as sgl
from sgjax.lang import ir
from sgjax.lang.replay import replay

from .fakes import FakeBackend


def replayed(program: ir.Program, backend: FakeBackend, **arguments):
    state = sgl.function(lambda s: None).run(backend=backend)
    replay(program, arguments, state)
    return state


@sgl.function
def quiz(s, question, times, style="short"):
    s += sgl.system(f"Be {style}.")
    s += sgl.user("Q: " + question + f" ({question})")
    s += sgl.assistant(sgl.gen("answer", max_tokens=4, stop=f"{question}!"))
    s.when(
        sgl.all_of(s["answer"] == "yes", sgl.not_(sgl.contains(s["answer"], "no"))),
        lambda s: s.append(sgl.user("Sure?") + sgl.assistant(sgl.gen("sure"))),
        lambda s: s.user("Why?"),
    )

    def think(s):
        with s.assistant():
            s += sgl.gen("thought")
        s += sgl.user("go on")

    s.repeat(times, think, until=lambda s: sgl.any_of(s["thought"] == "done", sgl.length(s["thought"]) > 9))
    forks = s.fork(2)
    forks += lambda i: sgl.assistant(f"{i}: " + sgl.gen("idea"))
    forks.join()
    s.set_var("best", "the " + s["idea"][1])
    s += sgl.assistant("So: " + s["idea"][0] + sgl.select("final", choices=["a", "b"]))
    return s["final"]


ANSWERS = ["yes", "certainly", "hm", "done", "idea", "idea"]
SCORES = {"a": [-1.0], "b": [-0.5]}


def test_a_record_does_what_the_program_does():
    program = quiz.trace(needs_all=True)
    assert program.parameters == ("question", "times")
    assert program.incomplete is None
    plain = FakeBackend(ANSWERS, scores=SCORES)
    again = FakeBackend(ANSWERS, scores=SCORES)
    expected = quiz.run(question="why", times=5, backend=plain)
    state = replayed(program, again, question="why", times=5)
    assert state.text() == expected.text()
    assert state.messages() == expected.messages()
    for name in ("answer", "sure", "thought", "idea", "best", "final"):
        assert state[name] == expected[name]
    assert state.ret_value == "b"
    assert sorted(asked.text for asked in plain.asked) == sorted(asked.text for asked in again.asked)
    assert again.asked[0].sampling is not None
    assert again.asked[0].sampling.stop == "why!"


def test_the_other_branch():
    state = replayed(quiz.trace(), FakeBackend(["no", "done", "i", "i"], scores=SCORES), question="?", times=1)
    assert "Why?" in state.text()
    assert "sure" not in state


def test_a_record_is_plain_data():
    program = quiz.trace()
    assert program == quiz.trace()
    assert program.ops[0] == ir.Append(
        0, ir.Concat((ir.RoleBegin("system"), ir.Text("Be short."), ir.RoleEnd("system")))
    )
    (when,) = [op for op in program.ops if isinstance(op, ir.When)]
    assert isinstance(when.condition, ir.AllOf)
    assert when.condition.conditions[0] == ir.Compare("==", ir.Variable(0, "answer"), ir.Constant("yes"))
    (repeat,) = [op for op in program.ops if isinstance(op, ir.Repeat)]
    assert repeat.times == ir.Argument("times")
    (fork,) = [op for op in program.ops if isinstance(op, ir.Fork)]
    assert fork.children == (1, 2)
    assert program.result == ir.Variable(0, "final")


@pytest.mark.parametrize(
    "needs_value",
    [
        lambda s, x: "a" if x else "b",
        lambda s, x: len(x),
        lambda s, x: list(x),
        lambda s, x: "a" in x,
        lambda s, x: int(x),
        lambda s, x: float(x),
        lambda s, x: range(x),
        lambda s, x: f"{x:>10}",
        lambda s, x: x[1:2],
        lambda s, x: x.strip(),
        lambda s, x: "a" if x == "b" else "c",
        lambda s, x: s.fork(x),
        lambda s, x: s.messages(),
        lambda s, x: {x: 1},
    ],
)
def test_what_needs_a_value_ends_the_record(needs_value):
    def body(s, x):
        s += "before"
        needs_value(s, x)
        s += "after"

    program = sgl.function(body).trace()
    assert program.ops == (ir.Append(0, ir.Text("before")),)
    assert program.incomplete
    with pytest.raises((TypeError, AttributeError)):
        sgl.function(body).trace(needs_all=True)
    with pytest.raises(ValueError, match="incomplete"):
        replayed(program, FakeBackend(), x="x")


def test_helpers_work_on_plain_values():
    assert sgl.contains("abc", "b")
    assert sgl.length([1, 2]) == 2
    assert sgl.not_(False)
    assert sgl.all_of(True, 1)
    assert not sgl.any_of(0, "")


def test_control_flow_in_a_plain_run():
    @sgl.function
    def program(s):
        s.repeat(5, lambda s: s.append(sgl.gen("x")), until=lambda s: s["x"] == "stop")
        s.when(s["x"] == "stop", lambda s: s.append("!"))
        s.when(False, lambda s: s.append("?"))

    assert program.run(backend=FakeBackend(["a", "b", "stop", "c"])).text() == "abstop!"
    with pytest.raises(ValueError, match="times"):
        sgl.function(lambda s: s.repeat(-1, print)).run(backend=FakeBackend())


def test_an_endless_program_is_refused():
    def body(s):
        while True:
            s += "x"

    assert "more than" in (sgl.function(body).trace().incomplete or "")


def test_missing_arguments():
    with pytest.raises(ValueError, match="arguments are missing: times"):
        replayed(quiz.trace(), FakeBackend(), question="x")


def test_concatenation_is_replayed():
    def body(s):
        forks = s.fork(2)
        forks += sgl.gen("x")
        forks.join("concate_and_append")

    assert replayed(sgl.function(body).trace(), FakeBackend(["a"])).text() == "aa"


def test_what_stops_a_trace_in_a_turn_does_not_close_it():
    @sgl.function
    def program(s, word):
        with contextlib.suppress(OSError), s.system(), s.var_scope("a"):
            s += "caught"
            raise OSError
        with s.user(), s.var_scope("b"):
            s += "open"
            s += "yes" if "x" in word else "no"

    ops = program.trace().ops
    assert [op.expr for op in ops if isinstance(op, ir.Append)] == [
        *(ir.RoleBegin("system"), ir.ScopeBegin("a"), ir.Text("caught"), ir.ScopeEnd("a"), ir.RoleEnd("system")),
        *(ir.RoleBegin("user"), ir.ScopeBegin("b"), ir.Text("open")),
    ]
