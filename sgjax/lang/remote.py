"""Running a program where the model is: record it, send it, and fill its state with what comes back."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sgjax.errors import RequestError
from sgjax.lang import ir
from sgjax.lang.executor import Executor
from sgjax.lang.interpreter import Interpreter
from sgjax.lang.program_check import check_program
from sgjax.lang.program_json import Unsendable, decode_program, encode_program, encode_sampling
from sgjax.lang.state import ProgramState
from sgjax.lang.task import Task
from sgjax.lang.tracing import trace
from sgjax.lang.transcript import Transcript
from sgjax.lang.transcript_json import load_transcript
from sgjax.lang.usage import Usage

Event = Mapping[str, Any]
_WHAT = "the program on the server"


def begin(
    function: Callable[..., Any], args: Sequence[Any], arguments: Mapping[str, Any], state: ProgramState, stream: bool
) -> RemoteRun | None:
    """Sends one call of a program's function to the state's backend, if that runs programs.

    Args:
      state: fresh.
      stream: text comes as it grows, else a variable at a time.

    Returns:
      The run, taken by the server; None when the program has to be called step by step: the backend runs no programs,
      the function needs a value while it is recorded, or the server refuses it. Then nothing has run.
    """
    interpreter = state.interpreter
    run_program = getattr(interpreter.backend, "run_program", None)
    names = _by_name(function, args, arguments)
    if run_program is None or names is None or interpreter.options.num_api_spec_tokens is not None:
        return None
    program = recorded(function, names)
    request = None if program is None else sendable(program, interpreter.options.defaults)
    if program is None or request is None:
        return None
    events = run_program({**request, "stream": True, "deltas": stream})
    return None if events is None else RemoteRun(program, state, events)


def _by_name(function: Callable[..., Any], args: Sequence[Any], arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments by name; None where the function does not take them so, which calling it will tell."""
    try:
        bound = inspect.signature(function).bind(None, *args, **arguments)
    except TypeError:
        return None
    kinds = {parameter.kind for parameter in bound.signature.parameters.values()}
    if not kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        return None
    return dict(list(bound.arguments.items())[1:])


def recorded(function: Any, arguments: Mapping[str, Any]) -> ir.Program | None:
    """One call of a program's function as data, None when it cannot be told without running it."""
    returned: list[Any] = []

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        returned.append(function(*args, **kwargs))
        return returned[0]

    program = trace(noting, arguments)
    if program.incomplete is not None or program.parameters or not returned:
        return None
    # A trace keeps only a single value of what the function returns.
    return None if returned[0] is not None and program.result is None else program


def sendable(program: ir.Program, defaults: ir.Sampling) -> dict[str, Any] | None:
    """The request for a server; None when the program has no form in JSON, or is beyond what servers take.

    Args:
      defaults: sampling where a generation gives nothing.
    """
    try:
        data = encode_program(program)
        check_program(decode_program(data), defaults)
        return {"program": data, "sampling": encode_sampling(defaults)}
    except (Unsendable, RequestError, RecursionError):
        return None


class RemoteRun:
    """A program under way on a server, and the state that it fills.

    Args:
      state: fresh; its executor is replaced by one that waits for the server.
      events: what the server tells, after it has taken the program.
    """

    def __init__(self, program: ir.Program, state: ProgramState, events: Iterator[Event]):
        self._program = program
        self._state = state
        self._events = events
        self._executor = RemoteExecutor(state.interpreter)
        state.interpreter.executor = self._executor

    def start(self, *, stream: bool) -> None:
        """Lets the state fill.

        Returns when the function itself would have: with `stream` at once, else as soon as nothing in the program
        depends on what the model says, and without threads at the end.

        Raises:
          ProgramError: the program failed where its function would have waited for a value.
        """
        executor = self._executor
        counts = _certain_names(self._program.ops)
        executor.expect(counts)
        executor.hold(0)  # names that are not known yet may come
        executor.submit(Task(partial(self._fill, counts), _WHAT))
        if not stream and (self._program.result is not None or _has_control_flow(self._program.ops)):
            executor.read(lambda transcript: None, "the result")

    def _fill(self, counts: Mapping[str, int]) -> None:
        try:
            for event in self._events:
                if self._executor.error is not None:  # cancelled: leaving ends it on the server
                    break
                self._take(event, counts)
        except Exception as error:
            self._executor.fail(error, _WHAT)
        finally:
            if isinstance(self._events, Generator):
                self._events.close()
            # after the failure is known: a name that nothing sets would be a KeyError else
            self._executor.release()

    def _take(self, event: Event, counts: Mapping[str, int]) -> None:
        executor = self._executor
        match event:
            case {"type": "delta", "state": 0, "name": name, "text": text}:
                executor.grow(name, text)
            case {"type": "text", "text": text}:
                executor.edit(lambda transcript: transcript.append(text))
            case {"type": "value", "state": 0, "name": name, "value": value}:
                # One that is set again later is only then what it will be.
                executor.complete(name, value, event.get("meta_info"), is_last=counts.get(name) == 1)
            case {"type": "end"}:
                self._state.ret_value = event["result"]
                format = self._state.interpreter.backend.chat_format
                executor.finish(load_transcript(event["transcript"], format), event["variables"], event["meta_info"])
                executor.usage.add(Usage(**event["usage"]))


class RemoteExecutor(Executor):
    """Takes values from elsewhere. What is appended later runs here, as with any executor."""

    def __init__(self, interpreter: Interpreter):
        super().__init__(
            Transcript(interpreter.backend.chat_format),
            threaded=interpreter.options.threaded,
            usage=interpreter.executor.usage,
        )

    def expect(self, names: Mapping[str, int]) -> None:
        """These will get values: reading them waits."""
        with self._changed:
            self._pending.update(dict.fromkeys(names, 1))

    def grow(self, name: str, text: str) -> None:
        """More text of a variable that is not complete."""
        with self._changed:
            self._partial[name] = self._partial.get(name, "") + text
            self._notify()

    def complete(self, name: str, value: Any, meta_info: Any, *, is_last: bool) -> None:
        """A variable's value, which can be read now if it is its last."""
        with self._changed:
            self.store(name, value, meta_info)
            if is_last:
                self._pending[name] = 0
                self._notify()

    def finish(self, transcript: Transcript, variables: Mapping[str, Any], meta_info: Mapping[str, Any]) -> None:
        """All that the program made."""
        with self._changed:
            self._transcript = transcript
            self._variables = dict(variables)
            self._meta_info = dict(meta_info)
            self._pending = dict.fromkeys([*self._pending, *variables], 0)
            self._notify()


def _certain_names(ops: Sequence[ir.Op]) -> Counter[str]:
    """Variables of the program's own state that are set whatever the model says, and how often."""
    known: dict[int, Counter[str]] = {0: Counter()}
    for op in ops:
        match op:
            case ir.Append(state, expr):
                known[state].update(ir.variables_set(expr))
            case ir.Assign(state, name):
                known[state][name] += 1
            case ir.Fork(state, children):
                known.update({child: Counter(known[state]) for child in children})
            case ir.Join(state, children, "gather_variable"):
                theirs = set().union(*(known[child] for child in children))
                known[state].update(theirs - known[state].keys())
    return known[0]


def _has_control_flow(ops: Sequence[ir.Op]) -> bool:
    """Whether the function would have waited for a value, to decide."""
    return any(isinstance(op, (ir.When, ir.Repeat)) for op in ops)
