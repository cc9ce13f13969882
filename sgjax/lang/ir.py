"""What a program consists of: expressions, values, conditions and operations. Plain frozen data.

Expressions are what `state += ...` takes. The other nodes appear when a program is traced (`tracing.py`): values stand
for what is known only when the program runs, conditions compare them, and operations are the program's steps. All of
it is declarative, so that a traced program can be written down and run elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sgjax.lang.sampling import NOTHING_GIVEN
from sgjax.lang.sampling import Sampling as Sampling

ROLES = ("system", "user", "assistant")
JoinMode = Literal["gather_variable", "concate_and_append"]
JOIN_MODES: tuple[JoinMode, ...] = ("gather_variable", "concate_and_append")
MAX_REPEAT = 10_000


class Expr:
    """Something that can be appended to a state. `+` concatenates, with strings too."""

    __slots__ = ()

    def __add__(self, other: Any) -> Concat:
        return concat(self, other)

    def __radd__(self, other: Any) -> Concat:
        return concat(other, self)


class Symbolic:
    """What stands for a value while a program is traced; its operators are in `symbols.py`."""

    __slots__ = ("node",)

    def __init__(self, node: Value | Condition):
        self.node = node


# --- expressions ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Expr):
    """Constant text."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Concat(Expr):
    """Expressions one after another; never nested."""

    items: tuple[Expr, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Image(Expr):
    """A picture: a path, a URL, base64 text, or the file's bytes."""

    source: str | bytes | Value


@dataclasses.dataclass(frozen=True, slots=True)
class Video(Expr):
    """`num_frames` pictures of a film; -1 is every frame."""

    path: str | Value
    num_frames: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Gen(Expr):
    """Text that the model writes, kept under `name`."""

    name: str | None
    sampling: Sampling = NOTHING_GIVEN


@dataclasses.dataclass(frozen=True, slots=True)
class Select(Expr):
    """The one of `choices` that the model finds likeliest. `method`: a choice method of `choices.py`."""

    name: str | None
    choices: Any  # tuple[str | Value, ...] | Value
    temperature: float
    method: Any


@dataclasses.dataclass(frozen=True, slots=True)
class RoleBegin(Expr):
    """A chat turn starts."""

    role: str


@dataclasses.dataclass(frozen=True, slots=True)
class RoleEnd(Expr):
    """It ends."""

    role: str


@dataclasses.dataclass(frozen=True, slots=True)
class ScopeBegin(Expr):
    """From here on, what is appended also becomes the variable `name`."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ScopeEnd(Expr):
    """Up to here."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class SeparateReasoning(Expr):
    """Generations whose reasoning goes to `<name>_reasoning_content` and is left out of the text."""

    expr: Expr
    model_type: str


# --- values -----------------------------------------------------------------------------------------------------------


class Value(Expr):
    """Known when the program runs."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Constant(Value):
    """A JSON value."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Argument(Value):
    """A parameter of the program."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Variable(Value):
    """A variable of a state; states are numbered in the order they are made, 0 is the program's own."""

    state: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class StateText(Value):
    """A state's whole text."""

    state: int


@dataclasses.dataclass(frozen=True, slots=True)
class Element(Value):
    """One item of a list, or one field of an object."""

    of: Value
    key: Any  # int | str


@dataclasses.dataclass(frozen=True, slots=True)
class Length(Value):
    """The number of characters or items."""

    of: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Joined(Value):
    """Values as text, one after another."""

    items: tuple[Value, ...]


# --- conditions -------------------------------------------------------------------------------------------------------


class Condition:
    """True or false when the program runs."""

    __slots__ = ()


CompareOp = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclasses.dataclass(frozen=True, slots=True)
class Compare(Condition):
    op: CompareOp
    left: Value
    right: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Contains(Condition):
    """Whether `part` is in a text or a list."""

    whole: Value
    part: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Truth(Condition):
    """Whether a value is true as Python sees it: not empty, not zero."""

    value: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Not(Condition):
    condition: Condition


@dataclasses.dataclass(frozen=True, slots=True)
class AllOf(Condition):
    conditions: tuple[Condition, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AnyOf(Condition):
    conditions: tuple[Condition, ...]


# --- operations -------------------------------------------------------------------------------------------------------


class Op:
    """One step of a traced program."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Append(Op):
    """`state += expr`."""

    state: int
    expr: Expr


@dataclasses.dataclass(frozen=True, slots=True)
class Fork(Op):
    """Makes `children`, copies of a state that go on independently and at the same time."""

    state: int
    children: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Join(Op):
    """Takes what the children did back into their parent."""

    state: int
    children: tuple[int, ...]
    mode: JoinMode


@dataclasses.dataclass(frozen=True, slots=True)
class Assign(Op):
    """Sets a variable."""

    state: int
    name: str
    value: Value


@dataclasses.dataclass(frozen=True, slots=True)
class When(Op):
    """One of two lists of operations."""

    condition: Condition
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Repeat(Op):
    """`body` at most `times` times; after each, stops when `until` holds."""

    times: Any  # int | Value
    body: tuple[Op, ...]
    until: Condition | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A traced function.

    Attributes:
      parameters: names of the arguments that the operations refer to.
      result: what the function returned, where that is a value.
      incomplete: None when the whole function was recorded, else what stopped it; `ops` is then the part before.
    """

    parameters: tuple[str, ...]
    ops: tuple[Op, ...]
    result: Value | None = None
    incomplete: str | None = None


# --- building and walking ---------------------------------------------------------------------------------------------


def as_expr(value: Any) -> Expr:
    """An expression of what may be appended: a string, an expression, or a traced value.

    Raises:
      TypeError: anything else.
    """
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, Symbolic) and isinstance(value.node, Value):
        return value.node
    raise TypeError(f"cannot append {value!r} to a state: it is neither text nor an expression such as gen(...)")


def as_value(value: Any) -> Value:
    """A value node of a traced or a plain value."""
    if isinstance(value, Symbolic):
        if not isinstance(value.node, Value):
            raise TypeError("a condition is no value: it can only be used in when() and repeat()")
        return value.node
    if isinstance(value, Text):
        return Constant(value.text)
    if isinstance(value, Concat):
        return Joined(tuple(as_value(item) for item in value.items))
    if isinstance(value, Expr) and not isinstance(value, Value):
        raise TypeError(f"{value!r} is no value: append it to a state, and read its variable")
    return value if isinstance(value, Value) else Constant(value)


def lower(value: Any) -> Any:
    """Nodes in place of the traced values in an option; lists become tuples."""
    if isinstance(value, Symbolic):
        return value.node
    if isinstance(value, (list, tuple)):
        return tuple(lower(item) for item in value)
    return value


def items_of(expr: Expr) -> tuple[Expr, ...]:
    """The parts of a concatenation; an expression that is none is its only part."""
    return expr.items if isinstance(expr, Concat) else (expr,)


def concat(*values: Any) -> Concat:
    """One flat concatenation."""
    return Concat(tuple(item for value in values for item in items_of(as_expr(value))))


def variables_set(expr: Expr) -> tuple[str, ...]:
    """The names that appending this expression gives values."""
    match expr:
        case Gen(name=str(name)) | Select(name=str(name)) | ScopeEnd(name=name):
            return (name,)
        case Concat(items=items):
            return tuple(name for item in items for name in variables_set(item))
        case SeparateReasoning(expr=inner):
            names = variables_set(inner)
            return (*names, *map(reasoning_name, names))
    return ()


def reasoning_name(name: str) -> str:
    """The variable that holds the reasoning of the variable `name`."""
    return f"{name}_reasoning_content"


def rewrite(node: Any, change: Callable[[Any], Any]) -> Any:
    """A copy with `change` applied to every leaf and value, outermost first; what it returns unchanged is descended."""
    changed = change(node)
    if changed is not node:
        return changed
    if isinstance(node, tuple):
        items = tuple(rewrite(item, change) for item in node)
        return items if any(new is not old for new, old in zip(items, node, strict=True)) else node
    if isinstance(node, Mapping) or not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    new = {name: rewrite(value, change) for name, value in fields.items()}
    return node if all(new[name] is fields[name] for name in fields) else dataclasses.replace(node, **new)
