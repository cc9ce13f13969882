"""Server-sent events: a response that notices at once when its client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sgjax_server.calls import until_disconnected
from sgjax_server.errors import as_api_error

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


class EventStream(Response):
    """Sends events as they come, then `[DONE]`. An error on the way is sent as an event, since the status is out.

    Args:
      events: encoded events.
      close: called exactly once, whether the stream ended, failed or lost its client.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Sending alone would not do: a request that waits in the queue has nothing to send for long.
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(until_disconnected(receive))
        try:
            await asyncio.wait((writer, watcher), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except OSError:
            return  # the client is gone
        except Exception as error:
            await send({"type": "http.response.body", "body": event(as_api_error(error).body()), "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})
