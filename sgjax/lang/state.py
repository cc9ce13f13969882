"""`s`: what a program appends to, reads from and forks."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from typing import Any, Self

from sgjax.closing import closed_at_exit
from sgjax.lang import ir
from sgjax.lang.interpreter import Interpreter
from sgjax.lang.usage import Usage


class State(abc.ABC):
    """What programs use, whether they run or are being traced."""

    def append(self, expr: Any) -> None:
        """`s += expr`, as a function.

        Returns before anything is generated.

        Raises:
          ValueError: it is None.
          TypeError: it is neither text nor an expression.
        """
        if expr is None:
            raise ValueError("cannot append None to a state")
        self._append(ir.as_expr(expr))

    @abc.abstractmethod
    def _append(self, expr: ir.Expr) -> None: ...

    @abc.abstractmethod
    def when(
        self,
        condition: Any,
        then: Callable[[Any], Any],
        otherwise: Callable[[Any], Any] | None = None,
    ) -> None:
        """Calls `then(s)` if the condition holds, else `otherwise(s)`.

        Unlike `if`, it can be traced, and run where the model is. Conditions are comparisons of values, `contains`,
        `length`, `all_of`, `any_of` and `not_`; in a plain run, anything that Python finds true or false.

        Args:
          then, otherwise: functions of the state, in which they append.
        """

    @abc.abstractmethod
    def repeat(self, times: Any, body: Callable[[Any], Any], until: Callable[[Any], Any] | None = None) -> None:
        """Calls `body(s)` at most `times` times; after each, stops if `until(s)` holds. Can be traced, unlike `for`.

        Raises:
          ValueError: `times` is not in [0, 10000].
        """

    @abc.abstractmethod
    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> Any:
        """Copies of this state that go on independently and at the same time.

        They start when all that was appended before has run. With more than one, the text so far is first put in the
        prefix cache by a request of its own, so that no branch computes it again.

        Args:
          size: branches.
          position_ids_offset: accepted for SGLang's programs; has no effect there either.
        """

    @abc.abstractmethod
    def __getitem__(self, name: str) -> Any:
        """A variable's value; waits for it. Raises what `get_var` does."""

    def __iadd__(self, other: Any) -> Self:
        self.append(other)
        return self

    def system(self, expr: Any = None) -> Any:
        """A turn of the system: with an expression the whole of it, without one a context manager."""
        return self._turn("system", expr)

    def user(self, expr: Any = None) -> Any:
        """A turn of the user; see `system`."""
        return self._turn("user", expr)

    def assistant(self, expr: Any = None) -> Any:
        """A turn of the assistant; see `system`."""
        return self._turn("assistant", expr)

    def _turn(self, role: str, expr: Any) -> Any:
        if expr is None:
            return self._around(ir.RoleBegin(role), ir.RoleEnd(role))
        self.append(ir.concat(ir.RoleBegin(role), expr, ir.RoleEnd(role)))
        return None

    def var_scope(self, name: str) -> contextlib.AbstractContextManager[None]:
        """What is appended inside becomes the variable `name` too: `with s.var_scope("all"): ...`. Scopes nest."""
        return self._around(ir.ScopeBegin(name), ir.ScopeEnd(name))

    @contextlib.contextmanager
    def _around(self, begin: ir.Expr, end: ir.Expr) -> Iterator[None]:
        self.append(begin)
        try:
            yield
        finally:  # who catches what was raised inside goes on outside of it
            self.append(end)

    @contextlib.contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator[Any]:
        """`with s.copy() as t:` a fork of one, joined at the end: what `t` sets is then a list of one in `s`."""
        forks = self.fork(1, position_ids_offset)
        try:
            yield forks[0]
        finally:
            forks.join()


class StateGroup(abc.ABC):
    """The branches of a fork: `forks[i]`, `len(forks)`, `for s in forks`, `with s.fork(2) as forks`.

    `forks += x` appends to all of them: the same expression, a list's items one by one, or `x(i)` to branch i.
    """

    states: Sequence[Any]

    @abc.abstractmethod
    def join(self, mode: ir.JoinMode = "gather_variable") -> None:
        """Takes what the branches did into their parent. Returns at once; reading from the parent waits.

        Args:
          mode: "gather_variable" makes each variable that is new in the branches a list of their values.
            "concate_and_append" appends to the parent what each branch appended, in order. The joined text is computed
            once, by the next generation, as what it is: text after text. That is exact, unlike gluing together what
            the branches computed at other positions and without each other.

        Raises:
          ValueError: another mode. A branch that does not end in the turn in which it started cannot be concatenated:
            the parent fails, and reading it raises `ProgramError`.
        """

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> Any:
        return self.states[index]

    def __setitem__(self, index: int, value: Any) -> None:
        """`forks[i] += x` ends here; another state is refused."""
        if value is not self.states[index]:
            raise TypeError("the branches of a fork cannot be replaced")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> Self:
        """Appends to every branch: the same expression, a list's items, or what a function of the index gives."""
        if isinstance(other, (list, tuple)):
            if len(other) != len(self.states):
                raise ValueError(f"{len(other)} expressions for {len(self.states)} branches")
            each = other
        elif callable(other) and not isinstance(other, (ir.Expr, ir.Symbolic)):
            each = [other(index) for index in range(len(self.states))]
        else:
            each = [other] * len(self.states)
        for state, expr in zip(self.states, each, strict=True):
            state += expr
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.join()


class ProgramState(State):
    """The state of a running program: its text, messages and variables.

    Appending (`s += expr`) returns at once; reading (`s[name]`) waits for what is read. What failed is raised where a
    value is read. `name in s` says, without waiting, whether something sets the variable. Made by `SglFunction.run`.

    Attributes:
      ret_value: what the program's function returned.
    """

    def __init__(self, interpreter: Interpreter):
        self.interpreter = interpreter
        self.ret_value: Any = None

    @property
    def _executor(self):
        return self.interpreter.executor

    # --- appending --------------------------------------------------------------------------------------------

    def _append(self, expr: ir.Expr) -> None:
        self.interpreter.submit(expr)

    def when(self, condition: Any, then: Callable[[Any], Any], otherwise: Callable[[Any], Any] | None = None) -> None:
        branch = then if condition else otherwise
        if branch is not None:
            branch(self)

    def repeat(self, times: Any, body: Callable[[Any], Any], until: Callable[[Any], Any] | None = None) -> None:
        if not 0 <= times <= ir.MAX_REPEAT:
            raise ValueError(f"times must lie in [0, {ir.MAX_REPEAT}], not {times}")
        for _ in range(times):
            body(self)
            if until is not None and until(self):
                return

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ProgramStateGroup:
        forks, start = self.interpreter.fork(size)
        return ProgramStateGroup([ProgramState(fork) for fork in forks], self, start)

    # --- reading ----------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self._executor.value(name)

    def __contains__(self, name: object) -> bool:
        return name in self._executor.known_names()

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def get_var(self, name: str) -> Any:
        """`s[name]`: the text that was generated, a list where there are several, or what `set_var` was given.

        Raises:
          KeyError: nothing sets it; names those that there are.
          ProgramError: the step that sets it failed.
        """
        return self._executor.value(name)

    def set_var(self, name: str, value: Any) -> None:
        """`s[name] = value`: sets a variable, after what was appended before. Any value; to be traced, a JSON one."""
        self.interpreter.set_variable(name, value)

    def get_meta_info(self, name: str) -> Any:
        """SGLang's meta information of the generation `name`; waits for it.

        Returns:
          A dict, a list of them with `n` > 1, None for a variable that was not generated. `prompt_tokens`,
          `cached_tokens` (of these, from the prefix cache), `completion_tokens`; `finish_reason`, a dict with `type`
          "stop" (and `matched`), "length" or "abort"; an engine adds `computed_tokens` and `e2e_latency` (seconds).
          With `return_logprob`, `output_token_logprobs`: (log-probability in nats, token id, text or None) per token;
          `input_token_logprobs` likewise from `logprob_start_len` on.

        Raises:
          KeyError, ProgramError: as `get_var`.
        """
        return self._executor.meta_info(name)

    def text(self) -> str:
        """The whole text, with the chat template's markers; waits for all of it.

        Raises:
          ProgramError: a step failed.
        """
        return self._executor.read(lambda transcript: transcript.text, "the text")

    def messages(self) -> list[dict[str, Any]]:
        """The closed chat turns, in OpenAI's form: dicts with `role` and `content`. Waits and raises as `text`."""
        return list(self._executor.read(lambda transcript: transcript.messages, "the messages"))

    def usage(self) -> Usage:
        """Tokens of all requests that have ended so far, those of forks included. Does not wait: `sync()` does."""
        return self._executor.usage.total

    def sync(self) -> None:
        """Waits until everything appended here has run, or was dropped by a failure. Raises nothing."""
        self._executor.sync()

    def error(self) -> BaseException | None:
        """What ended the program early, or None; waits until everything has run."""
        self._executor.sync()
        return self._executor.error

    def cancel(self) -> None:
        """Ends what this state and its forks have under way; what is behind it will not run.

        A generation in an `Engine`, or one that streams, ends at its next token, others when they are done. Returns at
        once. Reading what will never come raises `ProgramCancelled`; what is there can still be read. Does nothing
        when everything has run.
        """
        self.interpreter.cancel()

    # --- streams ----------------------------------------------------------------------------------------------

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text, or a variable's, piece by piece as it comes (`run(..., stream=True)`; else a step at a time).

        Leaving the last open stream of a state before its end cancels the program, since its reader has gone. A loop
        that is left by `break` does so, too; a stream that is kept in a variable stays open.

        Raises:
          KeyError: nothing sets the variable.
          ProgramError: a step failed.
        """
        return closed_at_exit(self._pieces(var_name))

    def _pieces(self, var_name: str | None) -> Generator[str]:
        with self._executor.streaming(self.cancel):
            yield from self._executor.pieces(var_name)

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncGenerator[Any]:
        """`text_iter` for an event loop. Cancelling the task that reads it is leaving it.

        Args:
          return_meta_data: yield pairs of a piece and the variable's meta information so far.
        """
        executor = self._executor
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        executor.listen(wake)
        try:
            with executor.streaming(self.cancel):
                position, is_done = 0, False
                while not is_done:
                    changed.clear()
                    text, is_done = executor.grown(var_name, position)
                    position += len(text)
                    if text and return_meta_data:
                        yield text, executor.meta_info_now(var_name) if var_name is not None else None
                    elif text:
                        yield text
                    elif not is_done:
                        await changed.wait()
        finally:
            executor.unlisten(wake)

    def __repr__(self) -> str:
        return f"ProgramState(variables={list(self._executor.known_names())})"


class ProgramStateGroup(StateGroup):
    """The branches of a running program's fork."""

    def __init__(self, states: list[ProgramState], parent: ProgramState, start: Any):
        self.states = states
        self._parent = parent
        self._start: Any = start  # a Future[Snapshot]

    def join(self, mode: ir.JoinMode = "gather_variable") -> None:
        forks = [state.interpreter for state in self.states]
        if mode == "gather_variable":
            self._parent.interpreter.gather(forks)
        elif mode == "concate_and_append":
            self._parent.interpreter.concatenate(forks, self._start)
        else:
            raise ValueError(f"join takes one of {', '.join(ir.JOIN_MODES)}, not {mode!r}")
