"""Streams of events: a response that notices at once when its client goes, in the form of each API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sgjax_server import direct_write
from sgjax_server.calls import until_disconnected
from sgjax_server.direct_write import DirectWrite
from sgjax_server.errors import ApiError, anthropic_error, as_api_error, ollama_error, openai_error, responses_error
from sgjax_server.middleware.timeout import taken_timeout, timeout_error

# How long a stream that is ended early may take to say so.
_LAST_WORDS_S = 1.0

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(data: Mapping[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


def named_event(name: str, data: Mapping[str, Any]) -> bytes:
    """One event that has a name, as Anthropic's do."""
    return f"event: {name}\n".encode() + event(data)


def line(data: Mapping[str, Any]) -> bytes:
    """One JSON object on a line of its own, as Ollama streams them."""
    return to_json(data, inf_nan_mode="null") + b"\n"


class EventHead:
    """Encodes events with JSON objects that all begin with the same fields: these are encoded once.

    Args:
      fields: one at least. These and the others hold no numbers of more than 64 bits.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self._start = b"data: " + _encode(fields)[:-1] + b","

    def event(self, fields: Mapping[str, Any]) -> bytes:
        """One event; `fields`, one at least, follow those of the head."""
        return b"%b%b\n\n" % (self._start, _encode(fields)[1:])


@dataclass(frozen=True)
class StreamForm:
    """What the streams of an API look like, beside their events.

    Attributes:
      error: encodes an error that comes in mid-stream. end: what follows the last event.
    """

    media_type: str
    error: Callable[[ApiError], bytes]
    end: bytes = b""

    def responses(self, answer: Any, event: Any) -> dict[int | str, dict[str, Any]]:
        """For the OpenAPI document: what a route answers with, whole or as a stream of events.

        Args:
          event: one of `openapi.EVENTS`.
        """
        pieces = "Events with such data" if self.media_type == "text/event-stream" else "Such objects, one a line"
        end = ", and then [DONE]" if self.end else ""
        stream = {
            "type": "string",
            "description": f"{pieces}{end}. The last is an error where the stream could not be finished.",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{event.__name__}"},
        }
        description = "The whole answer as JSON, or a stream, as `stream` says."
        return {200: {"description": description, "model": answer, "content": {self.media_type: {"schema": stream}}}}


OPENAI = StreamForm("text/event-stream", lambda error: event(openai_error(error)), DONE)
ANTHROPIC = StreamForm("text/event-stream", lambda error: named_event("error", anthropic_error(error)))
RESPONSES = StreamForm("text/event-stream", lambda error: named_event("error", responses_error(error)))
OLLAMA = StreamForm("application/x-ndjson", lambda error: line(ollama_error(error)))


class Writer:
    """Sends the body of a stream, piece by piece. Pieces may be empty."""

    def __init__(self, send: Send, write_directly: DirectWrite):
        self._send = send
        self._write_directly = write_directly
        self._has_begun = False
        self._loop = asyncio.get_running_loop()

    async def write(self, piece: bytes) -> None:
        """Sends a piece, which takes as long as the client needs to make room for it."""
        if (rest := self.write_now(piece)) is not None:
            await rest

    def write_now(self, piece: bytes) -> asyncio.Task[None] | None:
        """Sends a piece without a switch of tasks where the connection has room for it; else returns what will."""
        if not piece or (self._has_begun and self._write_directly(piece)):
            return None
        self._has_begun = True
        task = asyncio.Task(self._send(_body(piece)), loop=self._loop, eager_start=True)  # type: ignore[arg-type]
        if not task.done():
            return task
        task.result()
        return None


def _body(piece: bytes) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": True}


async def write_each(pieces: AsyncIterator[bytes], out: Writer) -> None:
    """The body of a stream whose pieces come from an iterator."""
    async for piece in pieces:
        await out.write(piece)


class EventStream(Response):
    """Sends events as they come, then the form's end. An error on the way is an event, since the status is out.

    Args:
      body: writes encoded events.
      close: called exactly once, whether the stream ended, failed or lost its client.
      form: of the API whose route this is.
    """

    def __init__(
        self, body: Callable[[Writer], Coroutine[Any, Any, None]], close: Callable[[], None], form: StreamForm = OPENAI
    ):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=form.media_type)
        del self.headers["content-length"]
        self._body = body
        self._close = close
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Sending alone would not do: a request that waits in the queue has nothing to send for long.
        writer = asyncio.create_task(self._write(send, direct_write.offered(scope)))
        watcher = asyncio.create_task(until_disconnected(receive))
        timeout_s = taken_timeout(scope)
        try:
            done, _ = await asyncio.wait((writer, watcher), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, watcher):
                task.cancel()
            try:
                await asyncio.gather(writer, watcher, return_exceptions=True)
            finally:
                self._close()
        if not done:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):  # it may be late because its client does not read
                    await self._end(send, timeout_error())

    async def _write(self, send: Send, write_directly: DirectWrite) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._body(Writer(send, write_directly))
        except OSError:
            return  # the client is gone
        except Exception as error:
            await self._end(send, as_api_error(error))
        else:
            await self._end(send)

    async def _end(self, send: Send, error: ApiError | None = None) -> None:
        last = self._form.end if error is None else self._form.error(error) + self._form.end
        await send({"type": "http.response.body", "body": last, "more_body": False})
