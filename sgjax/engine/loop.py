"""The engine's thread: commands in, steps, deltas out."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sgjax.engine.core import EngineCore
from sgjax.engine.outputs import OutputProcessor, RequestHandle
from sgjax.engine.sequence import Sequence
from sgjax.errors import EngineError
from sgjax.grammar import Grammar
from sgjax.text import Tokenizer
from sgjax.types import FinishReason, QueueFull, Request, RequestError, TokenEvent

_logger = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0


class EngineLoop:
    """Runs a core in a thread of its own. Every method may be called from any thread.

    Other threads never touch the core: they leave commands in the inbox, which run between two steps.

    Attributes:
      failure: what stopped the loop, when it was not `close`.
      num_integrity_failures: how often the check when idle found pages or slots unaccounted for; a bug unless 0.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer, *, max_queued: int):
        self.failure: Exception | None = None
        self.num_integrity_failures = 0
        self._core = core
        self._outputs = OutputProcessor(tokenizer, core.finish)
        self._max_queued = max_queued
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._commands: collections.deque[Callable[[], None]] = collections.deque()  # taken from the inbox, not yet run
        self._wake = threading.Condition()
        self._closing = False
        self._live: set[str] = set()
        self._grammar_queue: dict[str, tuple[RequestHandle, list[Sequence]]] = {}
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
        loop: asyncio.AbstractEventLoop | None,
        *,
        bounded: bool,
        grammar: Future[Grammar] | None = None,
        jump_forward: bool = True,
    ) -> RequestHandle:
        """Queues a validated request; its deltas arrive at the handle.

        Args:
          grammar: what its output must follow, perhaps still being compiled; until then it waits in the grammar queue.

        Raises:
          RequestError: the rid is in use, or a stop_regex is bad. QueueFull: too many wait and `bounded`.
          EngineError: the engine is down.
        """
        handle = RequestHandle(request, loop)
        streams = self._outputs.open_streams(request)

        def start() -> None:
            self._outputs.add(handle, streams)
            self._grammar_queue[request.rid] = handle, sequences
            if grammar is None:  # then it leaves the queue at once
                self._begin(handle, None)

        def constrain(compiled: Future[Grammar]) -> None:
            error = None
            try:
                for seq in sequences:
                    seq.constrain(compiled.result().matcher(), jump_forward=jump_forward)
            except (RequestError, EngineError) as refused:
                error = refused
            except BaseException as failed:  # cancelled by a closing engine, or a defect of the compiler
                _logger.exception("a grammar could not be compiled")
                error = EngineError(f"the grammar could not be compiled: {failed!r}")
            self._command(lambda: self._begin(handle, error))

        with self._wake:
            self._raise_if_down()
            if request.rid in self._live:
                raise RequestError("rid", f"{request.rid!r} is in use by a live request")
            num_waiting = len(self._core.scheduler.waiting) + len(self._inbox) + len(self._grammar_queue)
            if bounded and num_waiting >= self._max_queued:
                raise QueueFull(f"{self._max_queued} requests are waiting")
            self._live.add(request.rid)
            self._inbox.append(start)
            self._wake.notify()
        if grammar is not None:
            grammar.add_done_callback(constrain)
        return handle

    def _begin(self, handle: RequestHandle, refusal: RequestError | EngineError | None) -> None:
        """Out of the grammar queue: to the scheduler, or back to the caller."""
        rid = handle.request.rid
        queued, sequences = self._grammar_queue.get(rid, (None, []))
        if queued is not handle:  # aborted meanwhile, and the id may be another's by now
            return
        del self._grammar_queue[rid]
        if refusal is not None:
            self._forget(rid)
            self._outputs.refuse(handle, refusal)
            return
        for seq in sequences:
            self._core.add(seq)
        self._outputs.start(handle)

    def _finish(self, rid: str, reason: FinishReason) -> list[TokenEvent]:
        """Ends a request wherever it is."""
        _, sequences = self._grammar_queue.pop(rid, (None, []))
        ended = [TokenEvent(rid, seq.index, [], finish=reason, receipt=seq.receipt) for seq in sequences]
        return ended + self._core.finish(rid, None, reason)

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def abort(self, rid: str) -> bool:
        """Ends a request and frees its pages. False when it is unknown or has ended."""
        reason = FinishReason("abort", message="aborted")
        with self._wake:
            if rid not in self._live:
                return False
            self._inbox.append(lambda: self._deliver(self._finish(rid, reason)))
            self._wake.notify()
        return True

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` between two steps, in the engine's thread; returns its result or raises its exception."""
        done = threading.Event()
        result: list[Any] = []

        def command() -> None:
            try:
                result.append(function())
            except Exception as error:
                result.append(error)
            done.set()

        with self._wake:
            self._raise_if_down()
            self._inbox.append(command)
            self._wake.notify()
        done.wait()
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

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
                self._deliver(self._core.step())
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
        self._outputs.fail(EngineError(reason))

    def _receive(self) -> bool:
        """Runs the commands of other threads, waiting while there is nothing to do. False when closing."""
        with self._wake:
            while not self._inbox and not self._core.has_work and not self._closing:
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

    def _deliver(self, events: list[TokenEvent]) -> None:
        self._outputs.process(events, self._forget)

    def _forget(self, rid: str) -> None:
        with self._wake:
            self._live.discard(rid)
