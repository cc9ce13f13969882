"""Runs a traced program, given its arguments: on live states, so with the same effects as the function itself."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgjax.lang import ir
from sgjax.lang.state import ProgramState, ProgramStateGroup

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def replay(program: ir.Program, arguments: Mapping[str, Any], state: ProgramState) -> Any:
    """Executes the operations; blocks only where one needs a generated value.

    Args:
      state: the program's own, numbered 0.

    Returns:
      The program's result; it is `state.ret_value` too.

    Raises:
      ValueError: the trace is incomplete, or an argument is missing.
      ProgramError: a value that an operation needs failed.
    """
    if program.incomplete is not None:
        raise ValueError(f"the trace is incomplete: {program.incomplete}")
    missing = [name for name in program.parameters if name not in arguments]
    if missing:
        raise ValueError(f"arguments are missing: {', '.join(missing)}")
    run = Replay(arguments, state)
    run.run(program.ops)
    state.ret_value = None if program.result is None else run.value(program.result)
    return state.ret_value


class Replay:
    """The states of one run by number, and the values of its arguments."""

    def __init__(self, arguments: Mapping[str, Any], state: ProgramState):
        self._arguments = arguments
        self._states: dict[int, ProgramState] = {0: state}
        self._groups: dict[tuple[int, ...], ProgramStateGroup] = {}

    def run(self, ops: Sequence[ir.Op], at: str = "program.ops") -> None:
        """Executes operations. `at`: the path to them, which subclasses report."""
        for index, op in enumerate(ops):
            self._run(op, f"{at}[{index}]")

    def _run(self, op: ir.Op, at: str) -> None:
        match op:
            case ir.Append(number, expr):
                self._append(number, self._filled(expr), at)
            case ir.Fork(number, children):
                group = self._states[number].fork(len(children))
                self._groups[children] = group
                self._states.update(zip(children, group.states, strict=True))
            case ir.Join(_, children, mode):
                self._groups[children].join(mode)
            case ir.Assign(number, name, value):
                self._set(number, name, self.value(value))
            case ir.When(condition, then, otherwise):
                if self.holds(condition):
                    self.run(then, f"{at}.then")
                else:
                    self.run(otherwise, f"{at}.otherwise")
            case ir.Repeat(times, body, until):
                self._repeat(times, body, until, at)
            case _:
                raise TypeError(f"{op!r} is no operation")

    def _append(self, number: int, expr: ir.Expr, at: str) -> None:
        self._states[number].append(expr)

    def _set(self, number: int, name: str, value: Any) -> None:
        self._states[number].set_var(name, value)

    def _repeat(self, times: Any, body: Sequence[ir.Op], until: ir.Condition | None, at: str) -> None:
        count = int(self.value(times) if isinstance(times, ir.Value) else times)
        if not 0 <= count <= ir.MAX_REPEAT:
            raise ValueError(f"times must lie in [0, {ir.MAX_REPEAT}], not {count}")
        for _ in range(count):
            self.run(body, f"{at}.body")
            if until is not None and self.holds(until):
                return

    def _filled(self, expr: ir.Expr) -> ir.Expr:
        """The expression with values in place of symbols: text where it is appended, plain values in options."""

        def fill(node: Any) -> Any:
            if isinstance(node, ir.Concat):
                return ir.concat(*(self._appended(item, fill) for item in node.items))
            return self.value(node) if isinstance(node, ir.Value) else node

        return fill(ir.concat(expr))

    def _appended(self, item: ir.Expr, fill: Callable[[Any], Any]) -> ir.Expr:
        return ir.Text(str(self.value(item))) if isinstance(item, ir.Value) else ir.rewrite(item, fill)

    def value(self, node: ir.Value) -> Any:
        """A value, when it is there."""
        match node:
            case ir.Constant(value):
                return value
            case ir.Argument(name):
                return self._arguments[name]
            case ir.Variable(number, name):
                return self._states[number][name]
            case ir.StateText(number):
                return self._states[number].text()
            case ir.Element(of, key):
                return self.value(of)[key]
            case ir.Length(of):
                return len(self.value(of))
            case ir.Joined(items):
                return "".join(str(self.value(item)) for item in items)
        raise TypeError(f"{node!r} is no value")

    def holds(self, condition: ir.Condition) -> bool:
        match condition:
            case ir.Compare(op, left, right):
                return bool(_COMPARE[op](self.value(left), self.value(right)))
            case ir.Contains(whole, part):
                return self.value(part) in self.value(whole)
            case ir.Truth(value):
                return bool(self.value(value))
            case ir.Not(inner):
                return not self.holds(inner)
            case ir.AllOf(conditions):
                return all(map(self.holds, conditions))
            case ir.AnyOf(conditions):
                return any(map(self.holds, conditions))
        raise TypeError(f"{condition!r} is no condition")
