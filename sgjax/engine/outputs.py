"""From token events to text deltas: detokenising, stop strings, one mailbox per request."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from sgjax.errors import EngineError, QueueFull, RequestError
from sgjax.text import TextStream, Tokenizer
from sgjax.types import FinishReason, OutputDelta, Request, TokenEvent

Refusal = RequestError | QueueFull | EngineError
Arrival = OutputDelta | Refusal


class RequestHandle:
    """Where one request's deltas arrive. Iterate it (or `async for`) once, until every sample has finished.

    Who wants them in the moment in which they arrive has them delivered instead.

    Args:
      loop: the event loop that will iterate; None for a plain thread.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop | None):
        self.request = request
        self.loop = loop
        self._num_open = request.sampling.n
        self._started: threading.Event | asyncio.Event = threading.Event() if loop is None else asyncio.Event()
        self._refusal: Refusal | None = None
        self._items: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._take: Callable[[Sequence[Arrival]], None] | None = None

    async def started(self) -> None:
        """Waits until the engine has queued the request, which for a grammar is when it has been compiled.

        Raises:
          RequestError, QueueFull, EngineError: it was refused. Iterating raises it too.
        """
        assert isinstance(self._started, asyncio.Event), "submitted without an event loop: use `wait_started`"
        await self._started.wait()
        if self._refusal is not None:
            raise self._refusal

    def wait_started(self) -> None:
        """`started` for a plain thread."""
        assert isinstance(self._started, threading.Event), "submitted for an event loop: use `await started()`"
        self._started.wait()
        if self._refusal is not None:
            raise self._refusal

    def start(self) -> None:
        """Lets `started` return. Called like `put`."""
        self._started.set()

    def put(self, *items: Arrival) -> None:
        """Called in `loop` where there is one, else by the engine's thread."""
        if not self._started.is_set():
            if isinstance(items[0], Exception):
                self._refusal = items[0]
            self._started.set()
        if self._take is not None:
            self._take(items)
            return
        for item in items:
            self._items.put(item)

    def deliver_to(self, take: Callable[[Sequence[Arrival]], None]) -> None:
        """Has `take` called, where `put` is, with what arrives together; now, and here, with what has already.

        An exception is the last to arrive: the request has ended with it.
        """
        self._take = take
        waiting = [self._items.get() for _ in range(self._items.qsize())]
        if waiting:
            take(waiting)

    def _accept(self, item: Arrival) -> OutputDelta:
        if isinstance(item, Exception):
            raise item
        self._num_open -= item.finish is not None
        return item

    def __iter__(self) -> Iterator[OutputDelta]:
        assert self.loop is None, "submitted for an event loop: use `async for`"
        while self._num_open:
            yield self._accept(self._items.get())

    async def __aiter__(self) -> AsyncIterator[OutputDelta]:
        assert self.loop is not None, "submitted without an event loop: use `for`"
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()

        def take(items: Sequence[Arrival]) -> None:
            for item in items:
                arrived.put_nowait(item)

        self.deliver_to(take)
        while self._num_open:
            yield self._accept(await arrived.get())


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """A sample whose text has come to a stop, for the engine to finish."""

    rid: str
    index: int
    reason: FinishReason


@dataclasses.dataclass(slots=True)
class _Sample:
    """One sample's text, and how it ends once a stop was found in it.

    After that the engine is told, and its last event awaited, which holds the receipt. `last` is what to deliver then;
    tokens that come meanwhile are dropped.
    """

    stream: TextStream
    ending: FinishReason | None = None
    last: OutputDelta | None = None
    num_dropped: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Live:
    """A request that has not ended. `samples` holds those of its samples that have not, by index."""

    handle: RequestHandle
    samples: dict[int, _Sample]


class OutputProcessor:
    """Turns token events into deltas and delivers them to handles. One thread calls it, but for `open`.

    Args:
      loop: the event loop whose thread that is. What is for other loops is delivered by a call in them.
    """

    def __init__(self, tokenizer: Tokenizer, loop: asyncio.AbstractEventLoop | None = None):
        self._tokenizer = tokenizer
        self._loop = loop
        self._live: dict[str, _Live] = {}

    def __contains__(self, rid: str) -> bool:
        """Whether a request is registered, and has neither ended nor been refused."""
        return rid in self._live

    def open(self, handle: RequestHandle) -> Callable[[], None]:
        """What registers a handle, to be called before its first event. Any thread may call this.

        Raises:
          RequestError: a stop_regex that the matcher cannot compile.
        """
        request = handle.request
        samples = {i: _Sample(TextStream(self._tokenizer, request.sampling)) for i in range(request.sampling.n)}

        def register() -> None:
            self._live[request.rid] = _Live(handle, samples)

        return register

    def process(self, events: Iterable[TokenEvent]) -> list[Stop]:
        """Delivers events: to plain threads and the own loop at once, to any other event loop in a single call.

        Several events of one request, as of several steps, arrive together.

        Returns:
          The samples that a stop in their text has ended. The engine must finish them; their last event is still due.
        """
        deltas: dict[RequestHandle, list[OutputDelta]] = {}
        stops: list[Stop] = []
        for event in events:
            live = self._live[event.rid]
            delta = self._delta(event, live.samples[event.index], live.handle.request, stops)
            if event.finish is not None:
                self._forget_sample(event)
            if delta is not None:
                deltas.setdefault(live.handle, []).append(delta)
        elsewhere: dict[asyncio.AbstractEventLoop, list[tuple[RequestHandle, list[OutputDelta]]]] = {}
        for handle, arrived in deltas.items():
            if handle.loop is None or handle.loop is self._loop:
                handle.put(*arrived)
            else:
                elsewhere.setdefault(handle.loop, []).append((handle, arrived))
        for loop, items in elsewhere.items():
            _call_in(loop, _put_all, items)
        return stops

    def _forget_sample(self, event: TokenEvent) -> None:
        samples = self._live[event.rid].samples
        del samples[event.index]
        if not samples:
            del self._live[event.rid]

    def _delta(self, event: TokenEvent, sample: _Sample, request: Request, stops: list[Stop]) -> OutputDelta | None:
        """What to deliver now; None when a stop was found and the engine's last event is awaited."""
        if sample.ending is None:
            delta = self._read(sample, event, request)
            if sample.ending is None:
                return delta
            sample.last = delta
            if event.finish is None:
                stops.append(Stop(event.rid, event.index, sample.ending))
        else:
            sample.num_dropped += len(event.token_ids)
        if event.finish is None:
            return None
        assert sample.last is not None
        sample.last.finish, sample.last.receipt = sample.ending, event.receipt
        if event.receipt is not None:
            event.receipt.completion_tokens -= sample.num_dropped
        return sample.last

    def _read(self, sample: _Sample, event: TokenEvent, request: Request) -> OutputDelta:
        """Takes an event's tokens; notes the sample's ending when there is a stop in its text."""
        stream, num_before, num_kept = sample.stream, sample.stream.num_tokens, len(event.token_ids)
        try:
            text = self._text(stream, event, request)
        except RequestError as error:  # a stop_regex that takes too long ends its request, not the engine
            text, sample.ending = "", FinishReason("abort", message=str(error))
        else:
            if stream.matched is not None:
                sample.ending = FinishReason("stop", matched=stream.matched)
                num_kept = stream.num_tokens - num_before
        sample.num_dropped = len(event.token_ids) - num_kept  # forced tokens, which come several at once
        return OutputDelta(
            event.rid,
            event.index,
            text,
            event.token_ids[:num_kept],
            event.logprobs,
            event.prompt_logprobs,
            event.finish,
            event.receipt,
        )

    def _text(self, stream: TextStream, event: TokenEvent, request: Request) -> str:
        """What the event's tokens add to the text."""
        finish, token_ids = event.finish, event.token_ids
        by_token = finish is not None and finish.kind == "stop" and isinstance(finish.matched, int)
        by_token = by_token and not request.sampling.no_stop_trim
        text = stream.push(token_ids[:-1] if by_token else token_ids)
        if finish is not None:
            text += stream.finish()
        return text

    def started(self, rid: str) -> None:
        """Tells whoever waits that the request has been taken."""
        live = self._live.get(rid)
        if live is not None:  # else it has ended meanwhile
            self._call(live.handle, live.handle.start)

    def refused(self, rid: str, error: Refusal) -> None:
        """Ends a request that never began."""
        handle = self._live.pop(rid).handle
        self._call(handle, handle.put, error)

    def failed(self, error: EngineError) -> None:
        """Every open request gets the error."""
        for live in self._live.values():
            self._call(live.handle, live.handle.put, error)
        self._live.clear()

    def _call(self, handle: RequestHandle, function: Callable, *arguments: object) -> None:
        """Calls a handle's method where it must be called."""
        if handle.loop is None or handle.loop is self._loop:
            function(*arguments)
        else:
            _call_in(handle.loop, function, *arguments)


def _put_all(items: list[tuple[RequestHandle, list[OutputDelta]]]) -> None:
    for handle, arrived in items:
        handle.put(*arrived)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable, *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody waits there any more
        loop.call_soon_threadsafe(function, *arguments)
