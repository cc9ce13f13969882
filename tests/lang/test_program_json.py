"""Programs survive being written down; what is no program, or too much of one, is refused with its path."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgjax as sgl
from sgjax.errors import RequestError
from sgjax.lang import ir, json_codecs
from sgjax.lang.choices import METHODS, ChoicesMethod
from sgjax.lang.json_codecs import Unsendable
from sgjax.lang.program_check import check_program
from sgjax.lang.program_json import decode_arguments, decode_program, encode_program
from sgjax.lang.sampling import DEFAULT_SAMPLING

# --- any program ------------------------------------------------------------------------------------------------------

# Deferred ones keep the descriptions of what is made of them short.
texts = st.text(st.characters(codec="utf-8"), max_size=8)
names = st.sampled_from(["x", "y", "a name"])
states = st.integers(0, 255)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
numbers = integers | st.floats(allow_nan=False, allow_infinity=False)
constants = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, constants, max_size=3)


def tuples(strategy: st.SearchStrategy, max_size: int = 3) -> st.SearchStrategy:
    return st.lists(strategy, max_size=max_size).map(tuple)


_values = st.recursive(
    st.builds(ir.Constant, constants)
    | st.builds(ir.Argument, names)
    | st.builds(ir.Variable, states, names)
    | st.builds(ir.StateText, states),
    lambda inner: (
        st.builds(ir.Element, inner, texts | integers)
        | st.builds(ir.Length, inner)
        | st.builds(ir.Joined, tuples(inner))
    ),
    max_leaves=4,
)
values = st.deferred(lambda: _values)
open_values = values.filter(lambda value: not isinstance(value, ir.Constant))


def option(plain: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | plain | open_values


OPTIONS: dict[str, st.SearchStrategy] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "n", "top_k", "seed"), option(integers)),
    **dict.fromkeys(("logprob_start_len", "top_logprobs_num"), option(integers)),
    **dict.fromkeys(("temperature", "top_p", "min_p"), option(numbers)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), option(numbers)),
    **dict.fromkeys(("ignore_eos", "return_logprob", "return_text_in_logprobs"), option(st.booleans())),
    **dict.fromkeys(("dtype", "regex", "ebnf"), option(texts)),
    **dict.fromkeys(("stop", "stop_regex"), option(texts | tuples(texts | open_values))),
    "stop_token_ids": option(integers | tuples(integers | open_values)),
    **dict.fromkeys(("json_schema", "structural_tag"), option(texts | st.booleans() | objects)),
}
_samplings = st.fixed_dictionaries({}, optional=OPTIONS).map(lambda options: ir.Sampling(**options))
samplings = st.deferred(lambda: _samplings)
roles = st.sampled_from(ir.ROLES)
_single_exprs = st.one_of(
    st.builds(ir.Text, texts),
    values,
    st.builds(ir.Gen, st.none() | names, samplings),
    st.builds(
        ir.Select,
        st.none() | names,
        tuples(texts | open_values) | open_values,
        numbers,
        st.sampled_from(list(METHODS.values())),
    ),
    st.builds(ir.RoleBegin, roles),
    st.builds(ir.RoleEnd, roles),
    st.builds(ir.ScopeBegin, names),
    st.builds(ir.ScopeEnd, names),
)
single_exprs = st.deferred(lambda: _single_exprs)
concats = st.builds(ir.Concat, tuples(single_exprs))
exprs = single_exprs | concats | st.builds(ir.SeparateReasoning, single_exprs | concats, texts)
_conditions = st.recursive(
    st.builds(ir.Compare, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), values, values)
    | st.builds(ir.Contains, values, values)
    | st.builds(ir.Truth, values),
    lambda inner: st.builds(ir.Not, inner) | st.builds(ir.AllOf, tuples(inner)) | st.builds(ir.AnyOf, tuples(inner)),
    max_leaves=3,
)
conditions = st.deferred(lambda: _conditions)
_ops = st.recursive(
    st.builds(ir.Append, states, exprs)
    | st.builds(ir.Fork, states, tuples(states))
    | st.builds(ir.Join, states, tuples(states), st.sampled_from(ir.JOIN_MODES))
    | st.builds(ir.Assign, states, names, values),
    lambda inner: (
        st.builds(ir.When, conditions, tuples(inner), tuples(inner))
        | st.builds(ir.Repeat, integers | open_values, tuples(inner), st.none() | conditions)
    ),
    max_leaves=4,
)
ops = st.deferred(lambda: _ops)
programs = st.builds(ir.Program, tuples(names), tuples(ops, 4), st.none() | values)


def refused_at(data: Any) -> str | None:
    """The path that is refused, if any is."""
    try:
        check_program(decode_program(data), DEFAULT_SAMPLING)
    except RequestError as error:
        return error.field
    return None


@given(programs)
@settings(max_examples=300, deadline=None)
def test_round_trip(program: ir.Program):
    assert decode_program(json.loads(json.dumps(encode_program(program)))) == program


@given(st.recursive(constants, lambda inner: st.fixed_dictionaries({"version": st.just(1), "ops": st.lists(inner)})))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_as_such(data: Any):
    assert (refused_at(data) or "program").startswith("program")


@given(programs, st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_program_is_refused_or_another(program: ir.Program, data: st.DataObject):
    """Whatever stands anywhere in it: either it reads as a program, or a RequestError names a path."""
    document = json.loads(json.dumps(encode_program(program)))
    places = list(_places(document))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(constants)
    assert (refused_at(document) or "program").startswith("program")


def _places(node: Any):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, item in list(items):
        yield node, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def test_every_kind_of_node_is_covered():
    """A node that is new in `ir.py` gets a form, or stands here as one that has none."""
    bases = (ir.Expr, ir.Condition, ir.Op)
    nodes = {
        node
        for node in vars(ir).values()
        if isinstance(node, type) and issubclass(node, bases) and dataclasses.is_dataclass(node)
    }
    without = {ir.Text, ir.Concat, ir.Image, ir.Video}
    from sgjax.lang.program_json import _KINDS, _OPTIONS

    assert {cls for cls, _ in _KINDS.values()} == nodes - without
    for cls, fields in _KINDS.values():
        assert {field.name for field in dataclasses.fields(cls)} == fields.keys()
    assert {field.name for field in dataclasses.fields(ir.Sampling)} == _OPTIONS.keys() == OPTIONS.keys()


# --- what is refused --------------------------------------------------------------------------------------------------


def program(*ops: Any, **fields: Any) -> dict[str, Any]:
    return {"version": 1, "ops": list(ops), **fields}


def append(expr: Any, state: Any = 0) -> dict[str, Any]:
    return {"kind": "append", "state": state, "expr": expr}


def gen(**sampling: Any) -> dict[str, Any]:
    return append(["a", {"kind": "gen", "name": "x", "sampling": sampling}])


FORK = {"kind": "fork", "state": 0, "children": [1, 2]}
TRUE = {"kind": "truth", "value": {"kind": "constant", "value": True}}
AT_GEN = "program.ops[0].expr[1].sampling"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (None, "program"),
        ({"ops": []}, "program.version"),
        ({"version": 2, "ops": []}, "program.version"),
        ({"version": True, "ops": []}, "program.version"),
        ({"version": 1}, "program.ops"),
        (program(extra=1), "program.extra"),
        (program(parameters=[1]), "program.parameters[0]"),
        (program({"kind": "exec"}), "program.ops[0].kind"),
        (program({"kind": ["gen"]}), "program.ops[0].kind"),
        (program({"kind": "gen", "name": None}), "program.ops[0].kind"),
        (program({"kind": "append", "state": 0}), "program.ops[0].expr"),
        (program(append("a", state=1)), "program.ops[0].state"),
        (program(append("a", state="0")), "program.ops[0].state"),
        (program(append(["a", ["b"]])), "program.ops[0].expr[1]"),
        (program(append({"kind": "image", "source": "/etc/passwd"})), "program.ops[0].expr.kind"),
        (program(append({"kind": "role_begin", "role": "tool"})), "program.ops[0].expr.role"),
        (program(append("\ud800")), "program.ops[0].expr"),
        (program(gen(temperature="0")), f"{AT_GEN}.temperature"),
        (program(gen(temperature=-1)), f"{AT_GEN}.temperature"),
        (program(gen(temperature=float("nan"))), f"{AT_GEN}.temperature"),
        (program(gen(max_new_tokens=1.5)), f"{AT_GEN}.max_new_tokens"),
        (program(gen(max_new_tokens=10**400)), f"{AT_GEN}.max_new_tokens"),
        (program(gen(min_new_tokens=129)), f"{AT_GEN}.min_new_tokens"),
        (program(gen(n=0)), f"{AT_GEN}.n"),
        (program(gen(stop=["a", 1])), f"{AT_GEN}.stop[1]"),
        (program(gen(stop_regex="(")), f"{AT_GEN}.stop_regex"),
        (program(gen(dtype="list")), f"{AT_GEN}"),
        (program(gen(regex="a", ebnf="b")), f"{AT_GEN}.ebnf"),
        (program(gen(json_schema={"kind": "constant", "value": 1})), f"{AT_GEN}.json_schema"),
        (program(gen(logit_bias={})), f"{AT_GEN}.logit_bias"),
        (program(append({"kind": "select", "choices": []})), "program.ops[0].expr.choices"),
        (program(append({"kind": "select", "choices": ["a", ""]})), "program.ops[0].expr.choices[1]"),
        (program(append({"kind": "select", "choices": ["a"], "method": "best"})), "program.ops[0].expr.method"),
        (
            program(append({"kind": "separate_reasoning", "expr": "a", "model_type": "gpt-2"})),
            "program.ops[0].expr.model_type",
        ),
        (program(append({"kind": "argument", "name": "q"})), "program.ops[0].expr.name"),
        (program(append({"kind": "variable", "state": 3, "name": "q"})), "program.ops[0].expr.state"),
        (program(result={"kind": "state_text", "state": 1}), "program.result.state"),
        (program(FORK, FORK), "program.ops[1].children"),
        (program({**FORK, "children": []}), "program.ops[0].children"),
        (program({**FORK, "children": [0]}), "program.ops[0].children"),
        (program(FORK, {"kind": "join", "state": 0, "children": [1], "mode": "gather_variable"}),
         "program.ops[1].children"),
        (program(FORK, {"kind": "join", "state": 0, "children": [1, 2], "mode": "zip"}), "program.ops[1].mode"),
        (program({"kind": "when", "condition": TRUE, "then": [FORK]}, append("a", 1)), "program.ops[1].state"),
        (program({"kind": "when", "condition": TRUE, "then": [append("a", 9)]}), "program.ops[0].then[0].state"),
        (program({"kind": "repeat", "times": 10_001, "body": []}), "program.ops[0].times"),
        (program({"kind": "repeat", "times": -1, "body": []}), "program.ops[0].times"),
        (program({"kind": "repeat", "times": 1, "body": [], "until": "yes"}), "program.ops[0].until"),
        (program({"kind": "when", "condition": {"kind": "gen"}, "then": []}), "program.ops[0].condition.kind"),
    ],
)  # fmt: skip
def test_refused(data: Any, field: str):
    with pytest.raises(RequestError) as refused:
        check_program(decode_program(data), DEFAULT_SAMPLING)
    assert refused.value.field == field


def test_bounds():
    deep: dict[str, Any] = {"kind": "argument", "name": "a"}
    for _ in range(json_codecs.MAX_DEPTH):
        deep = {"kind": "length", "of": deep}
    with pytest.raises(RequestError, match="deep"):
        decode_program(program(append(deep), parameters=["a"]))
    with pytest.raises(RequestError, match="nodes"):
        decode_program(program(*[append("a")] * json_codecs.MAX_NODES))
    with pytest.raises(RequestError, match="characters of text"):
        decode_program(program(*[append("a" * 2**18)] * 5))
    with pytest.raises(RequestError, match="at most 256 characters"):
        decode_program(program(append({"kind": "gen", "name": "n" * 257})))
    forks = [{"kind": "fork", "state": 0, "children": [i]} for i in range(1, 300)]
    with pytest.raises(RequestError, match="states"):
        check_program(decode_program(program(*forks)), DEFAULT_SAMPLING)
    nested: list[Any] = []
    for _ in range(json_codecs.MAX_DEPTH):
        nested = [nested]
    with pytest.raises(RequestError, match="deep") as refused:
        decode_arguments({"a": nested})
    assert refused.value.field.startswith("arguments.a[0]")


def test_left_out_fields_have_their_defaults():
    read = decode_program(program(append({"kind": "select", "choices": ["a"]}), append({"kind": "gen"})))
    assert read.ops == (
        ir.Append(0, ir.Select(None, ("a",), 0.0, METHODS["token_length_normalized"])),
        ir.Append(0, ir.Gen(None)),
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda s: s.append(sgl.image("picture.png")),
        lambda s: s.append(sgl.select("x", ["a"], 0.0, ChoicesMethod("mine", lambda scores: (0, {})))),
        lambda s: s.set_var("x", (1, 2)),
        lambda s: s.set_var("x", object()),
        lambda s: s.append(sgl.gen("x", json_schema={"enum": {1, 2}})),
    ],
)
def test_what_has_no_form(function):
    with pytest.raises(Unsendable):
        encode_program(sgl.function(lambda s: function(s)).trace(needs_all=True))


def test_an_incomplete_trace():
    with pytest.raises(Unsendable, match="incomplete: TraceError"):
        encode_program(sgl.function(lambda s, a: int(a)).trace())
