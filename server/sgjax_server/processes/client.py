"""The engine of another process, as an HTTP process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from sgjax.engine.info import EngineInfo, EngineStats, LiveSnapshot, PauseMode
from sgjax.engine.outputs import OutputProcessor, Refusal, RequestHandle
from sgjax.errors import EngineError, RequestError
from sgjax_server.processes import messages
from sgjax_server.processes.messages import Abort, Call, ControlName, Failed, Refused, Reply, Started, Step, Submit

if TYPE_CHECKING:
    from sgjax.text import Tokenizer
    from sgjax.types import Request, TokenEvent

_logger = logging.getLogger(__name__)


class EngineClient:
    """A `ServedEngine` behind sockets. Made in the event loop that uses it.

    Text is made here: token events become deltas, and a stop found in them is told to the engine.

    Args:
      folder, generation, worker: which sockets: of which engine, for which HTTP process.
    """

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer, *, folder: str, generation: int, worker: int):
        self.info = info
        self.tokenizer = tokenizer
        self.failure: Exception | None = None
        self._worker = worker
        self._outputs = OutputProcessor(tokenizer, asyncio.get_running_loop())
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._context = zmq.Context()
        self._in = self._context.socket(zmq.PULL)
        self._in.bind(messages.worker_endpoint(folder, generation, worker))
        self._out = self._context.socket(zmq.PUSH)
        self._out.connect(messages.engine_endpoint(folder, generation))
        for socket in (self._in, self._out):
            socket.set_hwm(0)
            socket.linger = 0
        self._in_descriptor = self._in.fileno()
        self._loop.add_reader(self._in_descriptor, self._receive)

    @property
    def is_alive(self) -> bool:
        return self.failure is None

    # --- requests ---------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> RequestHandle:
        self.info.validate(request)  # the engine would say the same, later
        handle = RequestHandle(request, self._loop if self._is_in_loop else None)
        register = self._outputs.open(handle)
        if self._is_in_loop:
            self._begin(request, register)
        else:
            self._loop.call_soon_threadsafe(self._begin_or_refuse, handle, register)
        return handle

    @property
    def _is_in_loop(self) -> bool:
        return threading.get_ident() == self._thread

    def _begin(self, request: Request, register: Callable[[], None]) -> None:
        if not self.is_alive:
            raise EngineError(str(self.failure or "the engine is closed"))
        if request.rid in self._outputs:
            raise RequestError("rid", f"{request.rid!r} is in use by a live request")
        register()
        self._send(Submit(self._worker, request, time.monotonic()))

    def _begin_or_refuse(self, handle: RequestHandle, register: Callable[[], None]) -> None:
        try:
            self._begin(handle.request, register)
        except (RequestError, EngineError) as error:
            handle.put(error)

    def abort(self, rid: str, *, own: bool = False) -> bool:
        self._in_loop(self._send, Abort(rid, worker=self._worker if own else None))
        return True  # it may be another HTTP process's

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._is_in_loop:
            function(*arguments)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and all requests have ended with it
                self._loop.call_soon_threadsafe(function, *arguments)

    def _send(self, message: msgspec.Struct) -> None:
        if not self._out.closed:
            self._out.send(messages.encode(message), zmq.NOBLOCK)

    # --- the engine's messages --------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Takes everything that has come: ZeroMQ's descriptor says so once, and not again for what is left there."""
        events: list[TokenEvent] = []  # of several steps where this process lags: what they add is sent as one
        try:
            for frame in self._frames():
                message = messages.decode_from_engine(frame)
                if isinstance(message, Step):
                    events += message.events
                else:
                    self._process(events)
                    events.clear()
                    self._take(message)
            self._process(events)
        except Exception as error:  # a defect: whoever waits must hear of it all the same
            _logger.exception("a message of the engine could not be taken")
            self.fail(f"a message of the engine could not be taken: {error!r}")

    def _frames(self) -> Iterator[bytes]:
        with contextlib.suppress(zmq.Again):
            while self.is_alive:
                yield self._in.recv(zmq.NOBLOCK)

    def _take(self, message: Started | Refused | Reply | Failed) -> None:
        match message:
            case Started(rid):
                self._outputs.started(rid)
            case Refused(rid, error):
                self._refuse(rid, error.exception())
            case Reply(number):
                self._answer(number, message)
            case Failed(text):
                self.fail(text)

    def _process(self, events: list[TokenEvent]) -> None:
        for stop in self._outputs.process(events):
            self._send(Abort(stop.rid, stop.index, stop.reason, self._worker))

    def _refuse(self, rid: str, error: Refusal) -> None:
        if rid in self._outputs:
            self._outputs.refused(rid, error)

    def _answer(self, number: int, reply: Reply) -> None:
        future = self._calls.pop(number, None)
        if future is None or future.done():  # who asked has gone
            return
        if reply.error is not None:
            future.set_exception(reply.error.exception())
        else:
            future.set_result(reply.result)

    def fail(self, message: str) -> None:
        """Ends every request and call with an EngineError. In the event loop."""
        if self.failure is None:
            self.failure = EngineError(message)
            self._loop.remove_reader(self._in_descriptor)  # once: the number may be another's when this is closed
        self._outputs.failed(EngineError(message))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineError(message))
        self._calls.clear()

    def close(self) -> None:
        self.fail("the engine is closed")
        self._context.destroy(linger=0)

    # --- controls ---------------------------------------------------------------------------------------------

    async def _call[T](self, kind: type[T], method: ControlName, *arguments: Any) -> T:
        if not self.is_alive:
            raise EngineError(str(self.failure or "the engine is closed"))
        number = next(self._numbers)
        future = self._calls[number] = self._loop.create_future()
        self._send(Call(self._worker, number, method, list(arguments)))
        return msgspec.msgpack.decode(await future, type=kind)

    async def stats(self) -> EngineStats:
        return await self._call(EngineStats, "stats")

    async def stats_now(self) -> EngineStats:
        return await self._call(EngineStats, "stats_now")

    async def live(self, max_nodes: int) -> LiveSnapshot:
        return await self._call(LiveSnapshot, "live", max_nodes)

    async def metrics(self, model_name: str) -> str:
        return await self._call(str, "metrics", model_name)

    async def abort_requests(self, rid: str | None = None) -> None:
        await self._call(type(None), "abort_requests", rid)

    async def flush_cache(self) -> int:
        return await self._call(int, "flush_cache")

    async def pause(self, mode: PauseMode) -> None:
        await self._call(type(None), "pause", mode)

    async def resume(self) -> None:
        await self._call(type(None), "resume")

    async def update_weights(self, model_path: str, weight_version: str | None = None) -> str:
        return await self._call(str, "update_weights", model_path, weight_version)

    async def start_profile(self, output_dir: str) -> None:
        await self._call(type(None), "start_profile", output_dir)

    async def stop_profile(self) -> None:
        await self._call(type(None), "stop_profile")
