"""Records what a program does, without a model: its arguments and generations stay symbolic."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgjax.lang import ir
from sgjax.lang.state import State, StateGroup
from sgjax.lang.symbols import Marks, Symbol, TraceError, as_condition

MAX_OPS = 10_000


class Tracer:
    """One recording. Operations go to the innermost open list."""

    def __init__(self) -> None:
        self.marks = Marks()
        self._lists: list[list[ir.Op]] = [[]]
        self._num_states = 0
        self._num_ops = 0
        self._left: tuple[BaseException, int] | None = None  # what leaves a turn, and how much was recorded before

    def new_state(self, known: set[str]) -> TracingState:
        self._num_states += 1
        return TracingState(self, self._num_states - 1, known)

    def record(self, op: ir.Op) -> None:
        """Raises TraceError for a program that is too long."""
        self._num_ops += 1
        if self._num_ops > MAX_OPS:
            raise TraceError(f"the program has more than {MAX_OPS} operations; use s.repeat(...) for loops")
        self._lists[-1].append(self.marks.unmark(op))

    def recorded(self, body: Callable[[Any], Any] | None, state: TracingState) -> tuple[ir.Op, ...]:
        """What `body(state)` does, as a list of its own."""
        if body is None:
            return ()
        with self._list() as ops:
            body(state)
        return tuple(ops)

    @contextlib.contextmanager
    def _list(self) -> Iterator[list[ir.Op]]:
        ops: list[ir.Op] = []
        self._lists.append(ops)
        try:
            yield ops
        finally:
            self._lists.pop()

    def leave(self, error: BaseException) -> None:
        """The error is leaving a turn, which is closed. Unless it is caught, that is no part of the record."""
        if self._left is None or self._left[0] is not error:
            self._left = error, len(self._lists[0])

    def ops(self, stopped_by: BaseException | None = None) -> tuple[ir.Op, ...]:
        """What was recorded, up to the error that stopped it."""
        if self._left is not None and self._left[0] is stopped_by:
            return tuple(self._lists[0][: self._left[1]])
        return tuple(self._lists[0])


class TracingState(State):
    """Takes the place of a `ProgramState`."""

    def __init__(self, tracer: Tracer, number: int, known: set[str]):
        self._tracer = tracer
        self.number = number
        self.known = known

    def _append(self, expr: ir.Expr) -> None:
        self._tracer.record(ir.Append(self.number, expr))
        self.known.update(ir.variables_set(expr))

    @contextlib.contextmanager
    def _around(self, begin: ir.Expr, end: ir.Expr) -> Iterator[None]:
        with super()._around(begin, end):
            try:
                yield
            except BaseException as error:
                self._tracer.leave(error)
                raise

    def when(self, condition: Any, then: Callable[[Any], Any], otherwise: Callable[[Any], Any] | None = None) -> None:
        tracer = self._tracer
        ops = tracer.recorded(then, self), tracer.recorded(otherwise, self)
        tracer.record(ir.When(as_condition(condition), *ops))

    def repeat(self, times: Any, body: Callable[[Any], Any], until: Callable[[Any], Any] | None = None) -> None:
        times = ir.lower(times)
        if isinstance(times, int) and not 0 <= times <= ir.MAX_REPEAT:
            raise ValueError(f"times must lie in [0, {ir.MAX_REPEAT}], not {times}")
        ops = self._tracer.recorded(body, self)
        stop = None if until is None else as_condition(until(self))
        self._tracer.record(ir.Repeat(times, ops, stop))

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> TracingGroup:
        if not isinstance(size, int):
            raise TraceError("the number of branches must be known while the program is traced")
        children = [self._tracer.new_state(set(self.known)) for _ in range(size)]
        self._tracer.record(ir.Fork(self.number, tuple(child.number for child in children)))
        return TracingGroup(children, self, self._tracer)

    def __getitem__(self, name: str) -> Symbol:
        if name not in self.known:
            raise KeyError(f"no variable {name!r}; known are: {', '.join(sorted(self.known)) or 'none'}")
        return Symbol(ir.Variable(self.number, name), self._tracer.marks)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: object) -> bool:
        return name in self.known

    def get_var(self, name: str) -> Symbol:
        return self[name]

    def set_var(self, name: str, value: Any) -> None:
        self._tracer.record(ir.Assign(self.number, name, ir.as_value(value)))
        self.known.add(name)

    def text(self) -> Symbol:
        return Symbol(ir.StateText(self.number), self._tracer.marks)

    def sync(self) -> None:
        """Nothing runs."""

    def error(self) -> None:
        """Nothing fails."""

    def __getattr__(self, name: str) -> Any:
        raise TraceError(f"{name} is only there when the program runs")


class TracingGroup(StateGroup):
    """Takes the place of a `ProgramStateGroup`."""

    def __init__(self, states: list[TracingState], parent: TracingState, tracer: Tracer):
        self.states = states
        self._parent = parent
        self._tracer = tracer

    def join(self, mode: ir.JoinMode = "gather_variable") -> None:
        if mode not in ir.JOIN_MODES:
            raise ValueError(f"join takes one of {', '.join(ir.JOIN_MODES)}, not {mode!r}")
        parent = self._parent
        self._tracer.record(ir.Join(parent.number, tuple(state.number for state in self.states), mode))
        if mode == "gather_variable":
            parent.known |= set().union(*(state.known for state in self.states))


def trace(function: Callable[..., Any], arguments: Mapping[str, Any], *, needs_all: bool = False) -> ir.Program:
    """Runs a program's function symbolically.

    Args:
      arguments: those that are known; the others become symbols.
      needs_all: raise what stops the trace, instead of returning the part before it.

    Returns:
      The program; `incomplete` says what stopped the trace, if anything did.

    Raises:
      TraceError, TypeError, AttributeError, ...: with `needs_all`.
    """
    tracer = Tracer()
    state = tracer.new_state(set())
    parameters = []
    given: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in arguments:
            given[name] = arguments[name]
        elif parameter.default is parameter.empty:
            parameters.append(name)
            given[name] = Symbol(ir.Argument(name), tracer.marks)
    result, incomplete, stopped_by = None, None, None
    try:
        returned = function(state, **given)
        result = tracer.marks.unmark(ir.as_value(returned)) if _is_value(returned) else None
    except Exception as error:  # a function that does not expect symbols may raise anything
        if needs_all:
            raise
        incomplete, stopped_by = f"{type(error).__name__}: {error}", error
    return ir.Program(tuple(parameters), tracer.ops(stopped_by), result, incomplete)


def _is_value(value: Any) -> bool:
    if isinstance(value, ir.Symbolic):
        return isinstance(value.node, ir.Value)
    return isinstance(value, (str, int, float, bool))
