"""Traced programs as JSON, so that a server can run what a client wrote: data, typed and bounded, never code.

A node is an object whose `kind` names it, with the fields of its class in `ir.py`; a field at its default is left out.
A text is a string, a concatenation a list. Where an option may be a value of the program it is an object, otherwise
plain JSON. `docs/programs_on_the_server.md` has the table of kinds; here it is `_KINDS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sgjax.errors import RequestError
from sgjax.lang import ir
from sgjax.lang.choices import METHODS, token_length_normalized
from sgjax.lang.json_codecs import MAX_NAME, Codec, Json, OneOf, Optional, Plain, Reader, Tuple, Unsendable, shown

VERSION = 1
MAX_STATES = 256


def encode_program(program: ir.Program) -> dict[str, Any]:
    """A program's JSON.

    Raises:
      Unsendable: it is incomplete, or holds what cannot be sent: a picture, a choice method of one's own, a constant
        that is no JSON.
    """
    if program.incomplete is not None:
        raise Unsendable(f"the trace is incomplete: {program.incomplete}")
    return {
        "version": VERSION,
        "parameters": list(program.parameters),
        "ops": _OPS.write(program.ops),
        **({} if program.result is None else {"result": _VALUE.write(program.result)}),
    }


def decode_program(data: Any, at: str = "program") -> ir.Program:
    """The program that JSON describes. Its states, arguments and options are checked by `program_check`.

    Raises:
      RequestError: anything else than a program within the limits; `field` is the path to what is wrong.
    """
    reader = Reader()
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(data, dict) and (type(version) is not int or version != VERSION):
        raise RequestError(f"{at}.version", f"must be {VERSION}, not {version!r}")
    fields = {"version": _INT, "parameters": Tuple(_NAME), "ops": _OPS, "result": _VALUE}
    found = _read_fields(data, at, reader, fields, required=("ops",), without="version")
    return ir.Program(found.get("parameters", ()), found["ops"], found.get("result"))


def encode_sampling(sampling: ir.Sampling) -> dict[str, Any]:
    """The options that are given. Raises Unsendable."""
    return _SAMPLING.write(sampling)


def decode_sampling(data: Any, at: str = "sampling") -> ir.Sampling:
    """Options by name. Raises RequestError."""
    return _SAMPLING.read(data, at, Reader())


def encode_constant(value: Any) -> Any:
    """A JSON value. Raises Unsendable."""
    return _JSON.write(value)


def decode_arguments(data: Any, at: str = "arguments") -> dict[str, Any]:
    """Arguments by name: any JSON within the limits. Raises RequestError."""
    if not isinstance(data, dict):
        raise RequestError(at, f"must be an object, not {shown(data)}")
    return _JSON.read(data, at, Reader())


@dataclasses.dataclass(frozen=True)
class _Option:
    """A plain value, where `several` a list of them, or an object: a value of the program in place of either.

    An object that is itself plain (a JSON schema) is written as a constant.
    """

    plain: Plain
    several: bool = False
    takes_object: bool = False

    def write(self, value: Any) -> Any:
        if self.takes_object and isinstance(value, dict):
            return _VALUE.write(ir.Constant(value))
        if isinstance(value, ir.Value):
            return _VALUE.write(value)
        if self.several and isinstance(value, tuple):
            return [self.write(item) for item in value]
        return self.plain.write(value)

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        if isinstance(data, dict):
            value = _VALUE.read(data, at, reader)
            if isinstance(value, ir.Constant) and not (self.takes_object and isinstance(value.value, dict)):
                raise RequestError(at, "a constant is written plainly here")
            return value.value if isinstance(value, ir.Constant) else value
        if self.several and isinstance(data, list):
            item = _Option(self.plain)
            return tuple(item.read(one, f"{at}[{index}]", reader) for index, one in enumerate(data))
        return self.plain.read(data, at, reader)


# --- nodes ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Node:
    """A node of one of the kinds that are subclasses of `base`."""

    base: type
    what: str

    def write(self, value: Any) -> dict[str, Any]:
        kind = _NAMES.get(type(value))
        if kind is None or not isinstance(value, self.base):
            raise Unsendable(f"{value!r:.100} cannot be sent as {self.what}")
        found: dict[str, Any] = {"kind": kind}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if field.default is dataclasses.MISSING or content != field.default:
                found[field.name] = _KINDS[kind][1][field.name].write(content)
        return found

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        if not isinstance(data, dict):
            raise RequestError(at, f"must be {self.what}, not {shown(data)}")
        kind = data.get("kind")
        cls, fields = _KINDS.get(kind, (None, {})) if isinstance(kind, str) else (None, {})
        if cls is None or not issubclass(cls, self.base):
            known = [name for name, (cls, _) in _KINDS.items() if issubclass(cls, self.base)]
            raise RequestError(f"{at}.kind", f"must be one of {', '.join(known)}, not {shown(kind)}")
        required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        left_out = {name: _LEFT_OUT[name] for name in required if name in _LEFT_OUT and cls in (ir.Gen, ir.Select)}
        required = [name for name in required if name not in left_out]
        found = _read_fields(data, at, reader, {"kind": _NAME, **fields}, required, without="kind")
        return cls(**{**left_out, **found})


class _ExprCodec:
    """Strings are text, lists are concatenations, which are never nested."""

    def write(self, value: Any) -> Any:
        if isinstance(value, ir.Concat):
            return [self.write(item) for item in value.items]
        return _STRING.write(value.text) if isinstance(value, ir.Text) else _EXPR_NODE.write(value)

    def read(self, data: Any, at: str, reader: Reader) -> ir.Expr:
        if isinstance(data, list):
            return ir.Concat(tuple(self._one(item, f"{at}[{index}]", reader) for index, item in enumerate(data)))
        return self._one(data, at, reader)

    def _one(self, data: Any, at: str, reader: Reader) -> ir.Expr:
        if not isinstance(data, str):
            return _EXPR_NODE.read(data, at, reader)
        reader.enter(at)
        reader.leave()
        return ir.Text(reader.text(data, at))


class _SamplingCodec:
    """The given options by name."""

    def write(self, value: Any) -> dict[str, Any]:
        return {name: _OPTIONS[name].write(option) for name, option in value.given().items()}

    def read(self, data: Any, at: str, reader: Reader) -> ir.Sampling:
        return ir.Sampling(**_read_fields(data, at, reader, _OPTIONS, ()))


def _read_fields(
    data: Any, at: str, reader: Reader, fields: Mapping[str, Codec], required: Sequence[str], without: str = ""
) -> dict[str, Any]:
    """The fields of an object, each read by its codec; an unknown one is refused."""
    if not isinstance(data, dict):
        raise RequestError(at, f"must be an object, not {shown(data)}")
    for name in data:
        if name not in fields:
            raise RequestError(f"{at}.{name:.40}", "no such field")
    for name in required:
        if name not in data:
            raise RequestError(f"{at}.{name}", "is missing")
    reader.enter(at)
    found = {name: fields[name].read(data[name], f"{at}.{name}", reader) for name in data if name != without}
    reader.leave()
    return found


_STRING = Plain((str,), "a string")
_NAME = Plain((str,), "a string", MAX_NAME)
_INT = Plain((int,), "an integer")
_NUMBER = Plain((int, float), "a number")
_STATE = Plain((int,), "the number of a state", low=0)
_JSON = Json()
_EXPR, _EXPR_NODE = _ExprCodec(), _Node(ir.Expr, "an expression")
_VALUE, _CONDITION = _Node(ir.Value, "a value"), _Node(ir.Condition, "a condition")
_OPS = Tuple(_Node(ir.Op, "an operation"))
_SAMPLING = _SamplingCodec()
_ROLE = OneOf({role: role for role in ir.ROLES})
_COUNT, _REAL = _Option(_INT), _Option(_NUMBER)
_FLAG, _TEXT = _Option(Plain((bool,), "true or false")), _Option(_STRING)
_TEXTS, _SCHEMA = _Option(_STRING, several=True), _Option(Plain((str, bool), "a string or an object"), False, True)

_OPTIONS: dict[str, Codec] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "n", "top_k", "seed"), _COUNT),
    **dict.fromkeys(("logprob_start_len", "top_logprobs_num"), _COUNT),
    **dict.fromkeys(("temperature", "top_p", "min_p"), _REAL),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), _REAL),
    **dict.fromkeys(("ignore_eos", "return_logprob", "return_text_in_logprobs"), _FLAG),
    **dict.fromkeys(("dtype", "regex", "ebnf"), _TEXT),
    **dict.fromkeys(("stop", "stop_regex"), _TEXTS),
    "stop_token_ids": _Option(_INT, several=True),
    **dict.fromkeys(("json_schema", "structural_tag"), _SCHEMA),
}

_KINDS: dict[str, tuple[type, dict[str, Codec]]] = {
    # operations
    "append": (ir.Append, {"state": _STATE, "expr": _EXPR}),
    "fork": (ir.Fork, {"state": _STATE, "children": Tuple(_STATE)}),
    "join": (
        ir.Join,
        {"state": _STATE, "children": Tuple(_STATE), "mode": OneOf({mode: mode for mode in ir.JOIN_MODES})},
    ),
    "assign": (ir.Assign, {"state": _STATE, "name": _NAME, "value": _VALUE}),
    "when": (ir.When, {"condition": _CONDITION, "then": _OPS, "otherwise": _OPS}),
    "repeat": (ir.Repeat, {"times": _COUNT, "body": _OPS, "until": Optional(_CONDITION)}),
    # expressions
    "gen": (ir.Gen, {"name": Optional(_NAME), "sampling": _SAMPLING}),
    "select": (
        ir.Select,
        {"name": Optional(_NAME), "choices": _TEXTS, "temperature": _NUMBER, "method": OneOf(METHODS)},
    ),
    "role_begin": (ir.RoleBegin, {"role": _ROLE}),
    "role_end": (ir.RoleEnd, {"role": _ROLE}),
    "scope_begin": (ir.ScopeBegin, {"name": _NAME}),
    "scope_end": (ir.ScopeEnd, {"name": _NAME}),
    "separate_reasoning": (ir.SeparateReasoning, {"expr": _EXPR, "model_type": _NAME}),
    # values, which are expressions too
    "constant": (ir.Constant, {"value": _JSON}),
    "argument": (ir.Argument, {"name": _NAME}),
    "variable": (ir.Variable, {"state": _STATE, "name": _NAME}),
    "state_text": (ir.StateText, {"state": _STATE}),
    "element": (ir.Element, {"of": _VALUE, "key": Plain((int, str), "an index or a field's name")}),
    "length": (ir.Length, {"of": _VALUE}),
    "joined": (ir.Joined, {"items": Tuple(_VALUE)}),
    # conditions
    "compare": (
        ir.Compare,
        {"op": OneOf({op: op for op in ("==", "!=", "<", "<=", ">", ">=")}), "left": _VALUE, "right": _VALUE},
    ),
    "contains": (ir.Contains, {"whole": _VALUE, "part": _VALUE}),
    "truth": (ir.Truth, {"value": _VALUE}),
    "not": (ir.Not, {"condition": _CONDITION}),
    "all_of": (ir.AllOf, {"conditions": Tuple(_CONDITION)}),
    "any_of": (ir.AnyOf, {"conditions": Tuple(_CONDITION)}),
}
# Fields of "gen" and "select" without a default in `ir.py` that JSON may leave out.
_LEFT_OUT: dict[str, Any] = {"name": None, "temperature": 0.0, "method": token_length_normalized}
_NAMES = {cls: kind for kind, (cls, _) in _KINDS.items()}
