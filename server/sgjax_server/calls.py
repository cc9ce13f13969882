"""One HTTP call's requests in the engine: submitted together, and aborted together when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import Receive

from sgjax.errors import EngineError, QueueFull
from sgjax.types import GenerateOutput, Request, RequestError, SamplingParams
from sgjax_server.delivery import Delivery, Deltas, Take
from sgjax_server.errors import ClientGone

if TYPE_CHECKING:
    from sgjax.engine.outputs import Arrival, RequestHandle
    from sgjax_server.engine_api import ServedEngine
    from sgjax_server.routes.context import Context

# Longer texts are tokenised in a thread, so that they do not hold up the streams of others.
_INLINE_CHARS = 8192


async def encode(engine: ServedEngine, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each text. Raises RequestError for text that is not valid Unicode."""

    if sum(len(text) for text in texts) <= _INLINE_CHARS:
        return [engine.tokenizer.encode(text, add_special_tokens) for text in texts]
    return await asyncio.to_thread(engine.tokenizer.encode_batch, texts, add_special_tokens)


async def encode_chat(engine: ServedEngine, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> list[int]:
    """Token ids of a conversation; `options` are those of the chat template."""
    if len(str(messages)) + len(str(options)) <= _INLINE_CHARS:
        return engine.tokenizer.encode_chat(messages, **options)
    return await asyncio.to_thread(engine.tokenizer.encode_chat, messages, **options)


def within_context(sampling: SamplingParams, num_prompt_tokens: int, context_length: int) -> SamplingParams:
    """Asks for no more than the context has room for: some APIs' clients have to name a limit, and name a large one."""
    wanted = sampling.max_new_tokens
    if wanted is None or num_prompt_tokens + wanted <= context_length:
        return sampling
    return dataclasses.replace(sampling, max_new_tokens=None)


@contextlib.contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Reports a refused value under the name that the API's field has: max_tokens, not max_new_tokens."""
    try:
        yield
    except RequestError as error:
        raise RequestError(names.get(error.field, error.field), error.message) from None


class Call:
    """The engine requests of one HTTP call, which its record counts.

    Whoever makes a Call must `close` it in the end, which aborts what has not finished.

    Raises:
      RequestError, QueueFull: from the engine, for any of the requests; then none of them stays in it.
    """

    def __init__(self, context: Context, requests: Sequence[Request]):
        self.requests = requests
        self._engine = engine = context.engine
        self._record = context.record
        self._num_running = {request.rid: request.sampling.n for request in requests}
        self._handles: list[RequestHandle] = []
        if len(self._num_running) < len(requests):
            raise RequestError("rid", "the ids of a batch must differ")
        engine.info.check_in_flight(requests)
        try:
            for request in requests:
                self._handles.append(engine.submit(request))
        except BaseException:
            for request in requests[: len(self._handles)]:
                engine.abort(request.rid, own=True)
            raise
        self._record.begin(requests)

    async def started(self) -> None:
        """Waits until the engine has queued every request, which for a grammar is when it has been compiled.

        Raises:
          RequestError, QueueFull, EngineError: one is refused.
        """
        for request, handle in zip(self.requests, self._handles, strict=True):
            try:
                await handle.started()
            except (RequestError, QueueFull, EngineError):
                self._num_running[request.rid] = 0  # it has ended: the id may be somebody else's by now
                raise

    def close(self) -> None:
        """Aborts the requests that have not finished; their pages become free."""
        for rid, num_running in self._num_running.items():
            if num_running:
                self._engine.abort(rid, own=True)
        self._num_running.clear()

    async def collect(self) -> list[list[GenerateOutput]]:
        """The finished samples of each request, in order."""
        results = [
            [GenerateOutput(request.rid, i, request.input_ids) for i in range(request.sampling.n)]
            for request in self.requests
        ]

        def add(deltas: Deltas) -> None:
            for number, delta in deltas:
                results[number][delta.index].add(delta)

        await self.deliver(add)
        return results

    async def deliver(self, take: Take, interval: int = 1) -> None:
        """Hands what becomes visible to `take`, until every sample has finished; see `Delivery`.

        Raises:
          RequestError, QueueFull, EngineError: a request has ended with it. What `take` raises.
        """
        delivery = Delivery(take, interval, sum(self._num_running.values()))
        for number in range(len(self._handles)):
            self._handles[number].deliver_to(functools.partial(self._arrived, number, delivery))
        try:
            await delivery.ended
        finally:
            delivery.cancel()

    def _arrived(self, number: int, delivery: Delivery, items: Sequence[Arrival]) -> None:
        """Something has come to the handle of a request."""
        if delivery.ended.done():  # nobody is there for it any more
            return
        deltas = []
        for item in items:
            if isinstance(item, Exception):
                delivery.fail(item)
                return
            if item.finish is not None:
                self._num_running[item.rid] -= 1
                self._record.end(item.rid, item.index, item.finish, item.receipt)
            deltas.append(item)
        delivery.put(number, deltas)


async def started(call: Call, receive: Receive) -> None:
    """Waits until a call's requests are queued, so that a refusal still decides the response's status.

    Raises:
      RequestError, QueueFull, EngineError: it is refused. ClientGone: the client closed the connection. Each closes
        the call.
    """
    try:
        await while_connected(call.started(), receive)
    except BaseException:
        call.close()
        raise


async def finished(call: Call, receive: Receive) -> list[list[GenerateOutput]]:
    """Collects a call's outputs and closes it; gives up when the client goes.

    Raises:
      ClientGone: the client closed the connection. The call's requests are aborted.
    """
    try:
        return await while_connected(call.collect(), receive)
    finally:
        call.close()


async def while_connected[T](work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client goes. Raises ClientGone."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(until_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def until_disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
