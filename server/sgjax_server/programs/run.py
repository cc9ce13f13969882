"""One program at work: in a thread of its own, told about and ended from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import sgjax
from sgjax.errors import RequestAborted, RequestError
from sgjax.lang import ir
from sgjax.lang.interpreter import Interpreter, RunOptions
from sgjax.lang.state import ProgramState
from sgjax.lang.transcript_json import dump_transcript
from sgjax_server.errors import ApiError, as_api_error
from sgjax_server.programs.budget import Budget
from sgjax_server.programs.engine import ProgramBackend, ProgramEngine
from sgjax_server.programs.replay import Branch, ProgramReplay
from sgjax_server.schemas.errors import ErrorDetails

if TYPE_CHECKING:
    from sgjax_server.engine_api import ServedEngine


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramCall:
    """A checked program, and how it is to run.

    Attributes:
      defaults: sampling where a generation gives nothing.
      events: none but the last one, whole variables too, or also their growing text.
    """

    program: ir.Program
    arguments: Mapping[str, Any]
    defaults: ir.Sampling
    rid: str
    events: str  # "end", "values", "deltas"
    chat_format: str | None = None
    priority: int = 0
    extra_key: str = ""
    timeout_s: float = 600.0


class ProgramFailed(ApiError):
    """A program that could not be finished: `param` is the path of the node, and `variable` what it was to set."""

    def __init__(self, status: int, message: str, *, at: str, variable: str | None, state: int):
        what = f"variable {variable!r}: " if variable is not None else ""
        details = ErrorDetails(variable=variable, state=state)
        super().__init__(status, f"{at}: {what}{message}", param=at, code="program_failed", details=details)


class ProgramRun:
    """Runs a program. Made and used in an event loop; whoever makes one must `close` it in the end.

    Args:
      on_end: called when the program and all of its branches have ended, from any thread.
    """

    def __init__(self, engine: ServedEngine, call: ProgramCall, on_end: Callable[[], None]):
        self._call = call
        self._on_end = on_end
        self._budget = Budget()
        self._engine = ProgramEngine(
            engine, self._budget, rid=call.rid, priority=call.priority, extra_key=call.extra_key
        )
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[dict[str, Any] | ApiError] = asyncio.Queue()
        self._is_late = False
        self._timer = self._loop.call_later(call.timeout_s, self._time_out)
        threading.Thread(target=self._work, name="sgjax-program-run", daemon=True).start()

    def close(self) -> None:
        """Ends the program if it has not ended: its requests are aborted, and their pages become free."""
        self._timer.cancel()
        self._engine.end()

    async def collect(self) -> dict[str, Any]:
        """The last event: all that the program made.

        Raises:
          ProgramFailed: a step of it failed, or it took too long.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            if event["type"] == "end":
                return event

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Everything that is told, "end" last. Growing text that has come meanwhile is joined. Raises as `collect`."""
        held: dict[tuple[Any, ...], dict[str, Any]] = {}
        while True:
            if self._events.empty():
                for event in held.values():
                    yield event
                held.clear()
            event = await self._events.get()
            if isinstance(event, dict) and event["type"] in ("delta", "text"):
                key = event["type"], event.get("state"), event.get("name")
                held[key] = {**event, "text": held[key]["text"] + event["text"]} if key in held else event
                continue
            for earlier in held.values():
                yield earlier
            held.clear()
            if isinstance(event, ApiError):
                raise event
            yield event
            if event["type"] == "end":
                return

    def _time_out(self) -> None:
        self._is_late = True
        self._engine.end()

    # --- in threads -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            last = self._outcome()
        except Exception as error:  # a defect, since what a program does wrong is an outcome
            last = as_api_error(error)
        self._on_end()
        self._tell(last)

    def _outcome(self) -> dict[str, Any] | ApiError:
        call = self._call
        options = RunOptions(call.defaults, stream=call.events == "deltas")
        state = ProgramState(Interpreter(ProgramBackend(self._engine, call.chat_format), options))
        replay = ProgramReplay(
            call.arguments,
            state,
            self._budget,
            emit=self._tell if call.events != "end" else lambda event: None,
            deltas=call.events == "deltas",
            on_failure=self._engine.end,
        )
        try:
            return self._replayed(replay, state)
        except Exception as error:
            return self._failure(replay.first_failed, error)
        finally:  # nothing of it is at work when it has ended
            self._engine.end()
            for branch in replay.branches:
                branch.executor.sync()

    def _replayed(self, replay: ProgramReplay, state: ProgramState) -> dict[str, Any]:
        program = self._call.program
        replay.run(program.ops)
        result = None if program.result is None else replay.value(program.result)
        for branch in replay.branches:
            branch.executor.read(lambda transcript: None, "a branch")
        snapshot = state.interpreter.executor.snapshot()
        return {
            "type": "end",
            "id": self._call.rid,
            "result": result,
            "text": state.text(),
            "messages": state.messages(),
            "variables": snapshot.variables,
            "meta_info": snapshot.meta_info,
            "usage": dataclasses.asdict(state.usage()),
            "transcript": dump_transcript(snapshot.transcript),
        }

    def _failure(self, first: Branch | None, error: Exception) -> ProgramFailed:
        """What the client is told. `first`: the branch that failed before others did because of it."""
        if self._is_late:
            message = f"the program took longer than {self._call.timeout_s:g} s"
            return ProgramFailed(504, message, at=self._budget.at, variable=None, state=0)
        if first is None or not isinstance(first.executor.error, Exception):
            return _failed(error, self._budget.at, None, 0)
        return _failed(first.executor.error, first.at, first.names[0] if first.names else None, first.number)

    def _tell(self, event: dict[str, Any] | ApiError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _failed(error: Exception, at: str, variable: str | None, state: int) -> ProgramFailed:
    match error:
        case RequestError(field=field, message=message):
            status, text = 400, message if field == at else f"{field}: {message}"
        case ValueError() | TypeError() | LookupError():  # what a program does to its values
            status, text = 400, f"{type(error).__name__}: {error}"
        case RequestAborted():
            status, text = 409, str(error)
        case sgjax.EngineError() | RuntimeError():
            status, text = 503 if isinstance(error, sgjax.EngineError) else 500, str(error)
        case _:
            api_error = as_api_error(error)
            status, text = api_error.status, api_error.message
    return ProgramFailed(status, text, at=at, variable=variable, state=state)
