"""What a program from elsewhere must satisfy beyond its form, so that running it fails only where the model decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgjax.errors import RequestError
from sgjax.lang import ir
from sgjax.lang.backends.params import sampling_params
from sgjax.lang.program_json import MAX_STATES
from sgjax.lang.reasoning import check_model_type
from sgjax.sampling_params import MAX_CHOICES, SamplingParams

_Forks = Mapping[tuple[int, ...], int]


def check_program(program: ir.Program, defaults: ir.Sampling, at: str = "program") -> None:
    """Checks states, forks, arguments and all options that are known before the program runs.

    Args:
      defaults: sampling where a generation gives nothing.

    Raises:
      RequestError: `field` is the path to what is wrong.
    """
    checker = _Checker(frozenset(program.parameters), defaults)
    scope = checker.ops(program.ops, f"{at}.ops", _Scope(frozenset({0}), {}))
    if program.result is not None:
        checker.node(program.result, f"{at}.result", scope)


def check_sampling(sampling: ir.Sampling, at: str) -> None:
    """Checks options as far as they are known. Raises RequestError."""
    plain = {name: value for name, value in sampling.given().items() if not _is_open(value)}
    try:
        SamplingParams.from_dict(sampling_params(ir.Sampling(**plain)))
    except RequestError as error:
        raise RequestError(f"{at}.{'seed' if error.field == 'sampling_seed' else error.field}", error.message) from None
    except ValueError as error:
        raise RequestError(at, str(error)) from None


@dataclasses.dataclass(frozen=True)
class _Scope:
    """States that there are at one place of the program, and the forks that made them, with their parents."""

    states: frozenset[int]
    forks: _Forks


class _Checker:
    def __init__(self, parameters: frozenset[str], defaults: ir.Sampling):
        self._parameters = parameters
        self._defaults = defaults
        self._made = {0}

    def ops(self, ops: Sequence[ir.Op], at: str, scope: _Scope) -> _Scope:
        """Checks operations; the scope after them."""
        for index, op in enumerate(ops):
            scope = self._op(op, f"{at}[{index}]", scope)
        return scope

    def _op(self, op: ir.Op, at: str, scope: _Scope) -> _Scope:
        match op:
            case ir.When(condition, then, otherwise):
                self.node(condition, f"{at}.condition", scope)
                self.ops(then, f"{at}.then", scope)
                self.ops(otherwise, f"{at}.otherwise", scope)
            case ir.Repeat(times, body, until):
                self._times(times, f"{at}.times")
                self.node(times, f"{at}.times", scope)
                inside = self.ops(body, f"{at}.body", scope)
                self.node(until, f"{at}.until", inside)
            case ir.Fork(state, children):
                self._state(state, f"{at}.state", scope)
                return self._fork(state, children, f"{at}.children", scope)
            case ir.Join(state, children):
                if scope.forks.get(children) != state:
                    raise RequestError(f"{at}.children", f"are not those of a fork of state {state}")
            case _:
                self.node(op, at, scope)
        return scope

    def _times(self, times: Any, at: str) -> None:
        if isinstance(times, int) and not 0 <= times <= ir.MAX_REPEAT:
            raise RequestError(at, f"must lie in [0, {ir.MAX_REPEAT}], not {times}")

    def _fork(self, state: int, children: tuple[int, ...], at: str, scope: _Scope) -> _Scope:
        if not children or len(set(children)) < len(children) or not self._made.isdisjoint(children):
            raise RequestError(at, "must be numbers of new states, and at least one")
        self._made.update(children)
        if len(self._made) > MAX_STATES:
            raise RequestError(at, f"the program has more than {MAX_STATES} states")
        return _Scope(scope.states | set(children), {**scope.forks, children: state})

    def node(self, node: Any, at: str, scope: _Scope) -> None:
        """Checks anything but control flow."""
        for one, where in _walk(node, at):
            match one:
                case ir.Argument(name) if name not in self._parameters:
                    raise RequestError(f"{where}.name", f"{name!r} is no parameter of the program")
                case ir.Append(state=state) | ir.Assign(state=state) | ir.Variable(state=state) | ir.StateText(state):
                    self._state(state, f"{where}.state", scope)
                case ir.Gen(sampling=sampling):
                    check_sampling(sampling.over(self._defaults), f"{where}.sampling")
                case ir.Select(choices=choices):
                    _check_choices(choices, f"{where}.choices")
                case ir.SeparateReasoning(model_type=model_type):
                    _check_model_type(model_type, f"{where}.model_type")

    def _state(self, state: int, at: str, scope: _Scope) -> None:
        if state not in scope.states:
            raise RequestError(at, f"there is no state {state} here")


def _walk(node: Any, at: str) -> Iterator[tuple[Any, str]]:
    """Every node below this one, and itself, with the paths that they have in JSON."""
    if isinstance(node, ir.Concat):
        node = node.items
    if isinstance(node, tuple):
        for index, item in enumerate(node):
            yield from _walk(item, f"{at}[{index}]")
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        yield node, at
        for field in dataclasses.fields(node):
            yield from _walk(getattr(node, field.name), f"{at}.{field.name}")


def _is_open(value: Any) -> bool:
    """Whether an option is known only when the program runs."""
    return isinstance(value, ir.Value) or (isinstance(value, tuple) and any(map(_is_open, value)))


def _check_choices(choices: Any, at: str) -> None:
    if isinstance(choices, str):
        raise RequestError(at, "must be a list")
    if isinstance(choices, tuple) and not 0 < len(choices) <= MAX_CHOICES:
        raise RequestError(at, f"from 1 to {MAX_CHOICES}")
    if isinstance(choices, tuple) and "" in choices:
        raise RequestError(f"{at}[{choices.index('')}]", "is empty")


def _check_model_type(model_type: str, at: str) -> None:
    try:
        check_model_type(model_type)
    except ValueError as error:
        raise RequestError(at, str(error)) from None
