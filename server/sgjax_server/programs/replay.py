"""Executes a program's operations within a budget, and tells what becomes of its states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sgjax.lang import ir
from sgjax.lang.executor import Executor
from sgjax.lang.replay import Replay
from sgjax.lang.state import ProgramState
from sgjax.lang.task import Failure, Task
from sgjax.types import RequestError
from sgjax_server.programs.budget import Budget

Emit = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class Branch:
    """A state of the running program, and where it is.

    Attributes:
      number: 0 is the program's own; the others count in the order they are made, so that a fork in a loop makes new
        ones each time.
      at: the path of the node at work, or of the one that failed. names: the variables that it sets.
      growing: the one whose text comes bit by bit. num_sent: its characters that have been told; num_text: those of
        the whole text.
    """

    number: int
    executor: Executor
    at: str = "program"
    names: tuple[str, ...] = ()
    growing: str | None = None
    num_sent: int = 0
    num_text: int = 0


class ProgramReplay(Replay):
    """One run.

    Args:
      emit: told each event, from many threads but in order; see docs/programs_on_the_server.md.
      deltas: also text that grows.
      on_failure: called when a state has failed, the first one.

    Attributes:
      branches: all states, by their numbers. first_failed: the one whose failure came before others'.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        state: ProgramState,
        budget: Budget,
        *,
        emit: Emit,
        deltas: bool,
        on_failure: Callable[[], None],
    ):
        super().__init__(arguments, state)
        self.branches: list[Branch] = []
        self.first_failed: Branch | None = None
        self._budget = budget
        self._emit = emit
        self._deltas = deltas
        self._on_failure = on_failure
        self._by_state: dict[int, Branch] = {}
        self._add(0, state)

    def _add(self, number: int, state: ProgramState) -> Branch:
        branch = Branch(len(self.branches), state.interpreter.executor)
        self.branches.append(branch)
        self._by_state[number] = branch
        branch.executor.listen(lambda: self._changed(branch))
        return branch

    # --- operations -------------------------------------------------------------------------------------------

    def _run(self, op: ir.Op, at: str) -> None:
        self._budget.step(at)
        if isinstance(op, ir.Fork):
            self._budget.states(len(op.children))
        known = self._names(op.state) if isinstance(op, ir.Join) else ()
        super()._run(op, at)
        match op:
            case ir.Fork(state, children):
                parent = self._by_state[state].number
                made = [self._add(child, self._states[child]).number for child in children]
                self._emit({"type": "fork", "state": parent, "at": at, "children": made})
            case ir.Join(state):
                self._mark_end(state, tuple(name for name in self._names(state) if name not in known))
            case ir.Assign(state, name):
                self._mark_end(state, (name,))

    def _names(self, state: int) -> tuple[str, ...]:
        return self._by_state[state].executor.known_names()

    def _append(self, number: int, expr: ir.Expr, at: str) -> None:
        """Each item between two marks, which the state passes as it comes to them."""
        is_list = isinstance(expr, ir.Concat) and len(expr.items) != 1
        for index, item in enumerate(ir.items_of(expr)):
            if isinstance(item, ir.Text):
                self._budget.value(item.text)
            names = ir.variables_set(item)
            self._mark_begin(number, f"{at}.expr[{index}]" if is_list else f"{at}.expr", names, item)
            self._states[number].append(item)
            if names:
                self._mark_end(number, names)

    def value(self, node: ir.Value) -> Any:
        if isinstance(node, ir.Joined):
            return self._budget.joined([self.value(item) for item in node.items])
        return super().value(node)

    def _set(self, number: int, name: str, value: Any) -> None:
        self._budget.value(value)
        super()._set(number, name, value)

    # --- what becomes of states -------------------------------------------------------------------------------

    def _mark_begin(self, number: int, at: str, names: tuple[str, ...], item: ir.Expr) -> None:
        branch = self._by_state[number]
        growing = item.name if isinstance(item, ir.Gen) else None

        def mark() -> None:
            branch.at, branch.names, branch.growing, branch.num_sent = at, names, growing, 0

        branch.executor.submit(Task(mark, "mark", is_instant=True))

    def _mark_end(self, number: int, names: tuple[str, ...]) -> None:
        branch = self._by_state[number]
        executor = branch.executor

        def mark() -> None:
            branch.names, branch.growing = (), None
            for name in names:
                value, meta_info = executor.stored(name), executor.meta_info_now(name)
                if isinstance(value, Failure):
                    continue
                event = {"type": "value", "state": branch.number, "name": name, "value": value}
                self._emit(event if meta_info is None else {**event, "meta_info": meta_info})

        executor.submit(Task(mark, "mark", is_instant=True))

    def _changed(self, branch: Branch) -> None:
        """Called inside the executor's lock whenever something of it has changed."""
        executor = branch.executor
        if executor.error is not None:
            if self.first_failed is None:  # whoever waits for this one is told of it later, and fails then
                self.first_failed = branch
                self._on_failure()
            return
        if not self._deltas:
            return
        name = branch.growing
        if name is not None and name in executor.known_names():
            text, is_done = executor.grown(name, branch.num_sent)
            if text and not is_done:  # a value that is complete is told as a whole, and an older one was
                branch.num_sent += len(text)
                self._emit({"type": "delta", "state": branch.number, "name": name, "text": text})
        if branch.number == 0:
            self._tell_text(branch)

    def _tell_text(self, branch: Branch) -> None:
        try:
            text, _ = branch.executor.grown(None, branch.num_text)
        except RequestError:  # the chat format refuses the messages as they are now; who generates will be told
            return
        if text:
            branch.num_text += len(text)
            self._emit({"type": "text", "text": text})
