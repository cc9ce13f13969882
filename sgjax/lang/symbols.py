"""Values that are not known yet: what a program handles while it is traced.

They compare, can be measured and appended, and go into f-strings. What would need the value now (an `if`, a loop,
`int(...)`) raises `TraceError`. The helper functions work on plain values too: one program both runs and can be traced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

from sgjax.lang import ir


class TraceError(TypeError):
    """The program needs a value that is only known when it runs. Its message says what to write instead."""


# Formatting must give a string, so an f-string holds a mark in place of the value; `unmark` finds it again.
_MARKS = re.compile("\x02value ([0-9]+)\x03")


class Marks:
    """The values that one trace has put into strings."""

    def __init__(self) -> None:
        self._values: list[ir.Value] = []

    def mark(self, value: ir.Value) -> str:
        self._values.append(value)
        return f"\x02value {len(self._values) - 1}\x03"

    def unmark(self, node: Any) -> Any:
        """The node with values in place of their marks, in every string of it."""
        return ir.rewrite(node, self._unmark_leaf)

    def _unmark_leaf(self, node: Any) -> Any:
        if isinstance(node, ir.Concat):
            return self._flat(node)
        if isinstance(node, ir.Text) and _MARKS.search(node.text):
            return self._joined(node.text, ir.Text, ir.Concat)
        if isinstance(node, str) and _MARKS.search(node):
            return self._joined(node, ir.Constant, ir.Joined)
        return node

    def _flat(self, node: ir.Concat) -> ir.Concat:
        items = tuple(self.unmark(item) for item in node.items)
        if all(new is old for new, old in zip(items, node.items, strict=True)):
            return node
        return ir.concat(*items)

    def _joined(self, text: str, constant: Any, joined: Any) -> Any:
        pieces = _MARKS.split(text)
        nodes = [
            self._values[int(piece)] if index % 2 else constant(piece)
            for index, piece in enumerate(pieces)
            if index % 2 or piece
        ]
        return nodes[0] if len(nodes) == 1 else joined(tuple(nodes))


class Symbol(ir.Symbolic):
    """A value of a traced program."""

    __slots__ = ("_marks",)

    def __init__(self, node: ir.Value, marks: Marks):
        super().__init__(node)
        self._marks = marks

    def _compare(self, op: ir.CompareOp, other: Any) -> SymbolicCondition:
        assert isinstance(self.node, ir.Value)
        return SymbolicCondition(ir.Compare(op, self.node, self._value(other)))

    def _value(self, other: Any) -> ir.Value:
        return self._marks.unmark(ir.as_value(other))

    def __eq__(self, other: object) -> Any:
        return self._compare("==", other)

    def __ne__(self, other: object) -> Any:
        return self._compare("!=", other)

    def __lt__(self, other: Any) -> SymbolicCondition:
        return self._compare("<", other)

    def __le__(self, other: Any) -> SymbolicCondition:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> SymbolicCondition:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> SymbolicCondition:
        return self._compare(">=", other)

    __hash__ = None  # type: ignore[assignment]

    def contains(self, part: Any) -> SymbolicCondition:
        assert isinstance(self.node, ir.Value)
        return SymbolicCondition(ir.Contains(self.node, self._value(part)))

    def length(self) -> Symbol:
        assert isinstance(self.node, ir.Value)
        return Symbol(ir.Length(self.node), self._marks)

    def __getitem__(self, key: int | str) -> Symbol:
        if not isinstance(key, (int, str)) or isinstance(key, bool):
            raise TraceError(f"only one item or field of a value can be traced, not [{key!r}]")
        assert isinstance(self.node, ir.Value)
        return Symbol(ir.Element(self.node, key), self._marks)

    def __add__(self, other: Any) -> ir.Concat:
        return ir.concat(self, other)

    def __radd__(self, other: Any) -> ir.Concat:
        return ir.concat(other, self)

    def __str__(self) -> str:
        assert isinstance(self.node, ir.Value)
        return self._marks.mark(self.node)

    def __format__(self, spec: str) -> str:
        if spec:
            raise TraceError(f"the format {spec!r} needs the value while the program is traced")
        return str(self)

    def __repr__(self) -> str:
        return f"Symbol({self.node!r})"

    def __bool__(self) -> NoReturn:
        _refuse("if, and, or, not, in", "s.when(...) with contains, all_of, any_of, not_")

    def __len__(self) -> NoReturn:
        _refuse("len()", "length(value)")

    def __iter__(self) -> Iterator[Any]:
        _refuse("a loop over it", "s.repeat(...)")

    def __contains__(self, part: object) -> NoReturn:
        _refuse("in", "contains(value, part)")

    def __int__(self) -> NoReturn:
        _refuse("int()", "a comparison")

    def __float__(self) -> NoReturn:
        _refuse("float()", "a comparison")

    def __index__(self) -> NoReturn:
        _refuse("range() and the like", "s.repeat(...)")


def _refuse(what: str, instead: str) -> NoReturn:
    raise TraceError(f"{what} needs the value while the program is traced; use {instead}")


class SymbolicCondition(ir.Symbolic):
    """A condition of a traced program."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        _refuse("if, and, or, not", "s.when(...) with all_of, any_of, not_")


def as_condition(value: Any) -> ir.Condition:
    """The node of a traced condition, or of the truth of a value."""
    if isinstance(value, ir.Symbolic) and isinstance(value.node, ir.Condition):
        return value.node
    return ir.Truth(ir.as_value(value))


def contains(whole: Any, part: Any) -> Any:
    """`part in whole`, which can be traced."""
    if isinstance(whole, Symbol):
        return whole.contains(part)
    if isinstance(part, Symbol):
        return SymbolicCondition(ir.Contains(ir.as_value(whole), ir.as_value(part)))
    return part in whole


def length(value: Any) -> Any:
    """`len(value)`, which can be traced."""
    return value.length() if isinstance(value, Symbol) else len(value)


def not_(condition: Any) -> Any:
    """`not condition`, which can be traced."""
    if isinstance(condition, ir.Symbolic):
        return SymbolicCondition(ir.Not(as_condition(condition)))
    return not condition


def all_of(*conditions: Any) -> Any:
    """`a and b and ...`, which can be traced."""
    if any(isinstance(condition, ir.Symbolic) for condition in conditions):
        return SymbolicCondition(ir.AllOf(tuple(map(as_condition, conditions))))
    return all(conditions)


def any_of(*conditions: Any) -> Any:
    """`a or b or ...`, which can be traced."""
    if any(isinstance(condition, ir.Symbolic) for condition in conditions):
        return SymbolicCondition(ir.AnyOf(tuple(map(as_condition, conditions))))
    return any(conditions)
