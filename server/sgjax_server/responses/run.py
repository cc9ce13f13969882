"""One response while it is generated: its events, its end, and its place in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sgjax_server.chat.turn import ChatCall
from sgjax_server.errors import as_api_error
from sgjax_server.middleware.timeout import timeout_error
from sgjax_server.responses import format
from sgjax_server.responses.conversation import Item
from sgjax_server.responses.store import StoredResponse
from sgjax_server.responses.writer import Event, ItemWriter

if TYPE_CHECKING:
    from sgjax_server.routes.context import Context

_ENDINGS = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}


class ResponseRun:
    """Generates a response.

    Args:
      call: the turn, which this object closes.
      stored: whether the response is kept when it has ended.

    Attributes:
      response: what it is so far.
    """

    def __init__(
        self,
        call: ChatCall,
        body: dict[str, Any],
        input: list[Item],
        context: Context,
        *,
        stored: bool,
        with_receipt: bool,
    ):
        self.response = StoredResponse(body, input)
        self._call = call
        self._context = context
        self._is_stored = stored
        self._with_receipt = with_receipt
        self._writer = ItemWriter(context.token_texts)

    async def events(self) -> AsyncIterator[Event]:
        """The API's events, numbered."""
        number = 0
        async for event in self._events():
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self) -> AsyncIterator[Event]:
        for type in ("response.created", "response.in_progress"):
            yield {"type": type, "response": self.response.body}
        try:
            async for one in self._call.events(self._context.stream_interval):
                for event in self._writer.feed(one):
                    yield event
            self._end()
        except Exception as error:  # the status is out: the response itself tells of it
            self._fail(error)
        self._keep()
        yield {"type": _ENDINGS[self.response.body["status"]], "response": self.response.body}

    async def finish(self) -> dict[str, Any]:
        """The whole response.

        Raises:
          what the engine raises.
        """
        async for one in self._call.events(self._context.stream_interval):
            for _ in self._writer.feed(one):
                pass
        self._end()
        self._keep()
        return self.response.body

    def start(self) -> None:
        """Generates the response in the background, and closes."""
        self.response.is_running = True
        self._context.responses.put(self.response)
        work = asyncio.create_task(self._work())
        self._context.background.add(work)  # asyncio itself would lose it
        work.add_done_callback(self._context.background.discard)
        work.add_done_callback(lambda _: self.close())  # also where it was cancelled before it began

    async def _work(self) -> None:
        try:
            async with asyncio.timeout(self._context.server_config.request_timeout_s):
                await self.finish()
        except Exception as error:
            self._fail(timeout_error() if isinstance(error, TimeoutError) else error)
            self._keep()

    def close(self) -> None:
        """Aborts what has not finished."""
        self._call.close()

    def _end(self) -> None:
        writer = self._writer
        assert writer.end is not None
        self.response.body = format.ended(self.response.body, writer.items, writer.end, with_receipt=self._with_receipt)

    def _fail(self, error: Exception) -> None:
        self.response.body = format.failed(self.response.body, self._writer.items, as_api_error(error).message)

    def _keep(self) -> None:
        if self.response.is_running:
            self.response.is_running = False
            self._context.responses.end(self.response.id, self.response.body)
        elif self._is_stored:
            self._context.responses.put(self.response)
