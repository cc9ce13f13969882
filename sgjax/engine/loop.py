"""The engine's thread: commands in, steps, events out."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from sgjax.engine.admission import LiveRequests
from sgjax.engine.core import EngineCore
from sgjax.engine.outputs import Refusal, Stop
from sgjax.engine.sequence import Sequence
from sgjax.errors import EngineError, RequestError
from sgjax.grammar import Grammar
from sgjax.types import FinishReason, Request, TokenEvent

_logger = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
ABORTED = FinishReason("abort", message="aborted")


class EventSink(Protocol):
    """Where a loop's events go. Called by the engine's thread alone."""

    def started(self, rid: str) -> None:
        """The request is in the scheduler's queue."""
        ...

    def refused(self, rid: str, error: Refusal) -> None:
        """The request will not begin."""
        ...

    def process(self, events: list[TokenEvent]) -> list[Stop]:
        """One step's events. Returns the samples to end."""
        ...

    def failed(self, error: EngineError) -> None:
        """No open request will get anything further."""
        ...


class EngineLoop:
    """Runs a core in a thread of its own. Methods may be called from any thread, but where they say otherwise.

    Other threads never touch the core: they leave commands in the inbox, which run between two steps.

    Args:
      live: none yet; owned by this object from now on.

    Attributes:
      failure: what stopped the loop, when it was not `close`.
      is_paused: steps no more, while commands go on. To be set through `call`.
      weight_version: what receipts report.
      num_integrity_failures: how often the check when idle found pages or slots unaccounted for; a bug unless 0.
    """

    def __init__(self, core: EngineCore, sink: EventSink, live: LiveRequests):
        self.failure: Exception | None = None
        self.is_paused = False
        self.weight_version = "default"
        self.num_integrity_failures = 0
        self._core = core
        self._sink = sink
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._commands: collections.deque[Callable[[], None]] = collections.deque()  # taken from the inbox, not yet run
        self._wake = threading.Condition()
        self._closing = False
        self._live = live
        self._grammar_queue: dict[str, list[Sequence]] = {}
        self._checked = True
        self._thread = threading.Thread(target=self._run, name="sgjax-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return not self._closing and self.failure is None and self._thread.is_alive()

    @property
    def num_grammar_queue(self) -> int:
        """Requests whose grammar is being compiled."""
        return len(self._grammar_queue)

    def submit(
        self,
        request: Request,
        sequences: list[Sequence],
        register: Callable[[], None],
        *,
        most_tokens: int,
        bounded: bool,
        grammar: Future[Grammar] | None = None,
        jump_forward: bool = True,
    ) -> None:
        """Queues a validated request; its events go to the sink.

        Args:
          register: called in the engine's thread before the request's first event.
          most_tokens: what it counts as in flight.
          grammar: what its output must follow, perhaps still being compiled; until then it waits in the grammar queue.

        Raises:
          RequestError: the rid is in use. QueueFull: too many wait or are in flight, and `bounded`.
          EngineError: the engine is down.
        """

        def start() -> None:
            register()
            self._grammar_queue[request.rid] = sequences
            if grammar is None:  # then it leaves the queue at once
                self._begin(request, None)

        with self._wake:
            self._raise_if_down()
            if request.rid in self._live:
                raise RequestError("rid", f"{request.rid!r} is in use by a live request")
            if bounded:
                num_running = len(self._core.scheduler.running)
                self._live.check_room(len(sequences), most_tokens, num_running=num_running)
            self._live.add(request.rid, len(sequences), most_tokens)
            self._command(start)
        if grammar is not None:
            grammar.add_done_callback(functools.partial(self._constrain, request, sequences, jump_forward))

    def _constrain(
        self, request: Request, sequences: list[Sequence], jump_forward: bool, compiled: Future[Grammar]
    ) -> None:
        """Has queued sequences follow their grammar, and begin. Called by the compiler's threads."""
        error = None
        try:
            for seq in sequences:
                seq.constrain(compiled.result().matcher(), jump_forward=jump_forward)
        except (RequestError, EngineError) as refused:
            error = refused
        except BaseException as failed:  # cancelled by a closing engine, or a defect of the compiler
            _logger.exception("a grammar could not be compiled")
            error = EngineError(f"the grammar could not be compiled: {failed!r}")
        self._command(lambda: self._begin(request, error))

    def _begin(self, request: Request, refusal: RequestError | EngineError | None) -> None:
        """Out of the grammar queue: to the scheduler, or back to the caller."""
        rid = request.rid
        sequences = self._grammar_queue.get(rid)
        if sequences is None or sequences[0].request is not request:  # aborted, and the id may be another's by now
            return
        del self._grammar_queue[rid]
        if refusal is not None:
            with self._wake:
                self._live.remove(rid)
            self._sink.refused(rid, refusal)
            return
        for seq in sequences:
            self._core.add(seq)
        self._sink.started(rid)

    def abort(self, rid: str, index: int | None, reason: FinishReason, only_if: Callable[[], bool] | None) -> bool:
        """As `TokenEngine.abort`."""

        def finish() -> None:
            if only_if is None or only_if():
                self.deliver(self._finish(rid, index, reason))

        with self._wake:
            if rid not in self._live:
                return False
            self._command(finish)
        return True

    def _finish(self, rid: str, index: int | None, reason: FinishReason) -> list[TokenEvent]:
        """Ends a request, or a sample of it, wherever it is."""
        queued = self._grammar_queue.pop(rid, [])
        ended = [seq for seq in queued if index is None or seq.index == index]
        if left := [seq for seq in queued if seq not in ended]:
            self._grammar_queue[rid] = left
        events = [TokenEvent(rid, seq.index, [], finish=reason, receipt=seq.receipt) for seq in ended]
        return events + self._core.finish(rid, index, reason)

    def abort_requests(self, rid: str | None) -> None:
        """Ends a request and those of a batch under this id (`rid_0`, ...), or all. To be called through `call`."""
        for live in self._live:
            if rid is None or live == rid or _is_of_batch(live, rid):
                self.deliver(self._finish(live, None, ABORTED))

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` between two steps, in the engine's thread; returns its result or raises its exception."""
        result: Future[Any] = Future()

        def command() -> None:
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)

        with self._wake:
            self._raise_if_down()
            self._command(command)
        return result.result()

    def close(self) -> None:
        """Stops after the step at hand. Open requests get an `EngineError`. Closing twice is fine."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _raise_if_down(self) -> None:
        if self.failure is not None:
            raise EngineError(f"the engine has failed: {self.failure}") from self.failure
        if self._closing:
            raise EngineError("the engine is closed")

    def _run(self) -> None:
        try:
            while self._receive():
                if not self.is_paused:
                    self.deliver(self._core.step())
        except Exception as error:
            _logger.exception("the engine has failed")
            self.failure = error
        with self._wake:
            self._closing = True
            self._commands.extend(self._inbox)
            self._inbox.clear()
            self._live.clear()
        for command in self._commands:  # whoever waits for one of these must hear of the end too
            with contextlib.suppress(Exception):  # after a failure the core may be in any state
                command()
        reason = f"the engine has failed: {self.failure}" if self.failure else "the engine is closed"
        self._sink.failed(EngineError(reason))

    def _receive(self) -> bool:
        """Runs the commands of other threads, waiting while there is nothing to do. False when closing."""
        with self._wake:
            while not self._inbox and not self._closing and (self.is_paused or not self._core.has_work):
                if not self._wake.wait(None if self._checked else IDLE_CHECK_S):
                    self._check_when_idle()
            self._commands.extend(self._inbox)
            self._inbox.clear()
            self._checked = False
            closing = self._closing
        while self._commands:
            self._commands.popleft()()
        return not closing

    def _check_when_idle(self) -> None:
        """Looks once, after a pause, whether all pages are accounted for. A leak is reported, not answered by dying."""
        self._checked = True
        try:
            self._core.scheduler.check()
        except AssertionError as error:
            self.num_integrity_failures += 1
            _logger.error("pages or slots are not accounted for: %s", error)

    def deliver(self, events: list[TokenEvent]) -> None:
        """To the sink, and what it stops in turn; requests that have ended are forgotten before anybody hears of it.

        In the engine's thread: through `call`, for events of the core that came outside a step.
        """
        while events:
            if ended := [event for event in events if event.finish is not None]:
                with self._wake:
                    for event in ended:
                        self._count_ended(event)
            stops = self._sink.process(events)
            events = [event for stop in stops for event in self._core.finish(stop.rid, stop.index, stop.reason)]

    def _count_ended(self, event: TokenEvent) -> None:
        if event.receipt is not None:
            event.receipt.weight_version = self.weight_version
        self._live.end_sample(event.rid)


def _is_of_batch(rid: str, batch: str) -> bool:
    start, _, number = rid.rpartition("_")
    return start == batch and number.isdecimal()
