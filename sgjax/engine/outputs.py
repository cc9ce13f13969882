"""From token events to text deltas: detokenising, stop strings, one mailbox per request."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from sgjax.errors import EngineError
from sgjax.text import TextStream, Tokenizer
from sgjax.types import FinishReason, OutputDelta, Request, RequestError, TokenEvent


class RequestHandle:
    """Where one request's deltas arrive. Iterate it (or `async for`) once, until every sample has finished.

    Args:
      loop: the event loop that will iterate; None for a plain thread.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop | None):
        self.request = request
        self.loop = loop
        self._num_open = request.sampling.n
        self._started = asyncio.Event()
        self._refusal: RequestError | None = None
        self._deltas: queue.SimpleQueue | asyncio.Queue = queue.SimpleQueue() if loop is None else asyncio.Queue()

    @property
    def has_queued(self) -> bool:
        """Whether something has arrived that was not read yet; a reader that lags may join such deltas."""
        return not self._deltas.empty()

    async def started(self) -> None:
        """Waits until the engine has the request: at once, or when its grammar is compiled.

        Raises:
          RequestError: the grammar is refused. Iterating raises it too.
        """
        await self._started.wait()
        if self._refusal is not None:
            raise self._refusal

    def start(self) -> None:
        """Lets `started` return. Called like `put`."""
        self._started.set()

    def put(self, item: OutputDelta | EngineError | RequestError) -> None:
        """Called in `loop` where there is one, else by the engine's thread."""
        if isinstance(item, RequestError):
            self._refusal = item
        self._started.set()
        self._deltas.put(item) if self.loop is None else self._deltas.put_nowait(item)

    def _accept(self, item: OutputDelta | EngineError | RequestError) -> OutputDelta:
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


class OutputProcessor:
    """Turns token events into deltas and delivers them. Used by the engine's thread only.

    Args:
      finish: ends one sample in the core and returns its final events, for stop strings.
    """

    def __init__(self, tokenizer: Tokenizer, finish: Callable[[str, int | None, FinishReason], list[TokenEvent]]):
        self._tokenizer = tokenizer
        self._finish = finish
        self._handles: dict[str, RequestHandle] = {}
        self._streams: dict[tuple[str, int], TextStream] = {}

    def open_streams(self, request: Request) -> list[TextStream]:
        """One stream per sample, for `add`. Any thread may call it, so that what it refuses reaches the caller.

        Raises:
          RequestError: a stop_regex that the matcher cannot compile.
        """
        return [TextStream(self._tokenizer, request.sampling) for _ in range(request.sampling.n)]

    def add(self, handle: RequestHandle, streams: Iterable[TextStream]) -> None:
        self._handles[handle.request.rid] = handle
        for index, stream in enumerate(streams):
            self._streams[handle.request.rid, index] = stream

    def process(self, events: Iterable[TokenEvent], on_ended: Callable[[str], None]) -> None:
        """Delivers one step's events: to plain threads at once, to each event loop in a single call.

        Args:
          on_ended: told the id of a request that has ended before whoever waits for it can hear of that.
        """
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestHandle, OutputDelta]]] = {}
        for event in events:
            handle = self._handles[event.rid]
            delta = self._delta(event, handle.request)
            if delta.finish is not None:
                del self._streams[event.rid, event.index]
                if not any((event.rid, i) in self._streams for i in range(handle.request.sampling.n)):
                    del self._handles[event.rid]
                    on_ended(event.rid)
            if handle.loop is None:
                handle.put(delta)
            else:
                by_loop.setdefault(handle.loop, []).append((handle, delta))
        for loop, items in by_loop.items():
            _call_in(loop, _put_all, items)

    def _delta(self, event: TokenEvent, request: Request) -> OutputDelta:
        finish, receipt = event.finish, event.receipt
        stream = self._streams[event.rid, event.index]
        num_before, num_dropped = stream.num_tokens, 0
        try:
            text = self._text(stream, event, request)
            ending = None
            if stream.matched is not None:
                ending = FinishReason("stop", matched=stream.matched)
                num_dropped = len(event.token_ids) - (stream.num_tokens - num_before)
        except RequestError as error:  # a stop_regex that takes too long ends its request, not the engine
            text, ending = "", FinishReason("abort", message=str(error))
        if ending is not None:
            if finish is None:
                receipt = self._finish(event.rid, event.index, ending)[0].receipt
            finish = ending
        if num_dropped and receipt is not None:  # forced tokens, which come several at once, behind the stop
            del event.token_ids[-num_dropped:]
            receipt.completion_tokens -= num_dropped
        return OutputDelta(
            event.rid, event.index, text, event.token_ids, event.logprobs, event.prompt_logprobs, finish, receipt
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

    def start(self, handle: RequestHandle) -> None:
        """Tells whoever waits that the request has been taken."""
        if handle.loop is None:
            handle.start()
        else:
            _call_in(handle.loop, handle.start)

    def refuse(self, handle: RequestHandle, error: EngineError | RequestError) -> None:
        """Ends a request that never reached the core."""
        rid = handle.request.rid
        del self._handles[rid]
        for index in range(handle.request.sampling.n):
            del self._streams[rid, index]
        self._fail(handle, error)

    def fail(self, error: EngineError) -> None:
        """Every open request gets the error."""
        for handle in self._handles.values():
            self._fail(handle, error)
        self._handles.clear()
        self._streams.clear()

    def _fail(self, handle: RequestHandle, error: EngineError | RequestError) -> None:
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
