"""From token events to text deltas: detokenising, stop strings, one mailbox per request."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from sgjax.errors import EngineError, QueueFull, RequestError
from sgjax.text import TextStream, Tokenizer
from sgjax.types import FinishReason, OutputDelta, Request, TokenEvent

Refusal = RequestError | QueueFull | EngineError


class RequestHandle:
    """Where one request's deltas arrive. Iterate it (or `async for`) once, until every sample has finished.

    Args:
      loop: the event loop that will iterate; None for a plain thread.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop | None):
        self.request = request
        self.loop = loop
        self._num_open = request.sampling.n
        self._started: threading.Event | asyncio.Event = threading.Event() if loop is None else asyncio.Event()
        self._refusal: Refusal | None = None
        self._deltas: queue.SimpleQueue | asyncio.Queue = queue.SimpleQueue() if loop is None else asyncio.Queue()

    @property
    def has_queued(self) -> bool:
        """Whether something has arrived that was not read yet; a reader that lags may join such deltas."""
        return not self._deltas.empty()

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

    def put(self, item: OutputDelta | Refusal) -> None:
        """Called in `loop` where there is one, else by the engine's thread."""
        if isinstance(item, Exception) and not self._started.is_set():
            self._refusal = item
        self._started.set()
        self._deltas.put(item) if self.loop is None else self._deltas.put_nowait(item)

    def _accept(self, item: OutputDelta | Refusal) -> OutputDelta:
        if isinstance(item, Exception):
            raise item
        self._num_open -= item.finish is not None
        return item

    def __iter__(self) -> Iterator[OutputDelta]:
        assert isinstance(self._deltas, queue.SimpleQueue), "submitted for an event loop: use `async for`"
        while self._num_open:
            yield self._accept(self._deltas.get())

    async def __aiter__(self) -> AsyncIterator[OutputDelta]:
        assert isinstance(self._deltas, asyncio.Queue), "submitted without an event loop: use `for`"
        while self._num_open:
            yield self._accept(await self._deltas.get())


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


class OutputProcessor:
    """Turns token events into deltas and delivers them to handles. One thread calls it, but for `open`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._handles: dict[str, RequestHandle] = {}
        self._samples: dict[tuple[str, int], _Sample] = {}
        self._num_open: dict[str, int] = {}  # samples of each request

    def __contains__(self, rid: str) -> bool:
        """Whether a request is registered, and has neither ended nor been refused."""
        return rid in self._handles

    def open(self, handle: RequestHandle) -> Callable[[], None]:
        """What registers a handle, to be called before its first event. Any thread may call this.

        Raises:
          RequestError: a stop_regex that the matcher cannot compile.
        """
        request = handle.request
        samples = [_Sample(TextStream(self._tokenizer, request.sampling)) for _ in range(request.sampling.n)]

        def register() -> None:
            self._handles[request.rid] = handle
            self._num_open[request.rid] = len(samples)
            for index, sample in enumerate(samples):
                self._samples[request.rid, index] = sample

        return register

    def process(self, events: Iterable[TokenEvent]) -> list[Stop]:
        """Delivers events: to plain threads at once, to each event loop in a single call.

        Returns:
          The samples that a stop in their text has ended. The engine must finish them; their last event is still due.
        """
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestHandle, OutputDelta]]] = {}
        stops: list[Stop] = []
        for event in events:
            handle = self._handles[event.rid]
            delta = self._delta(event, handle.request, stops)
            if event.finish is not None:
                self._forget_sample(event)
            if delta is None:
                continue
            if handle.loop is None:
                handle.put(delta)
            else:
                by_loop.setdefault(handle.loop, []).append((handle, delta))
        for loop, items in by_loop.items():
            _call_in(loop, _put_all, items)
        return stops

    def _forget_sample(self, event: TokenEvent) -> None:
        del self._samples[event.rid, event.index]
        self._num_open[event.rid] -= 1
        if not self._num_open[event.rid]:
            del self._handles[event.rid], self._num_open[event.rid]

    def _delta(self, event: TokenEvent, request: Request, stops: list[Stop]) -> OutputDelta | None:
        """What to deliver now; None when a stop was found and the engine's last event is awaited."""
        sample = self._samples[event.rid, event.index]
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
        handle = self._handles.get(rid)
        if handle is None:  # it has ended meanwhile
            return
        if handle.loop is None:
            handle.start()
        else:
            _call_in(handle.loop, handle.start)

    def refused(self, rid: str, error: Refusal) -> None:
        """Ends a request that never began."""
        handle = self._handles.pop(rid)
        del self._num_open[rid]
        for index in range(handle.request.sampling.n):
            del self._samples[rid, index]
        _put(handle, error)

    def failed(self, error: EngineError) -> None:
        """Every open request gets the error."""
        for handle in self._handles.values():
            _put(handle, error)
        for held in (self._handles, self._samples, self._num_open):
            held.clear()


def _put(handle: RequestHandle, error: Refusal) -> None:
    if handle.loop is None:
        handle.put(error)
    else:
        _call_in(handle.loop, handle.put, error)


def _put_all(items: list[tuple[RequestHandle, OutputDelta]]) -> None:
    for handle, delta in items:
        handle.put(delta)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable, *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody waits there any more
        loop.call_soon_threadsafe(function, *arguments)
