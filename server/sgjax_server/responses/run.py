"""One response while it is generated: its events, its end, and its place in the store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sgjax_server import sse
from sgjax_server.chat.turn import ChatCall, ChatEvent
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

    async def stream(self, out: sse.Writer) -> None:
        """Generates the response, and writes the API's events while it does."""
        number = itertools.count()

        def encoded(events: Iterable[Event]) -> bytes:
            numbered = ({**event, "sequence_number": next(number)} for event in events)
            return b"".join([sse.named_event(event["type"], event) for event in numbered])

        begun = ("response.created", "response.in_progress")
        await out.write(encoded({"type": type, "response": self.response.body} for type in begun))
        try:
            await self._call.deliver(
                lambda arrived: out.write_now(encoded(self._feed(arrived))), self._context.stream_interval
            )
            self._end()
        except OSError:
            raise  # the client is gone
        except Exception as error:  # the status is out: the response itself tells of it
            self._fail(error)
        self._keep()
        await out.write(encoded([{"type": _ENDINGS[self.response.body["status"]], "response": self.response.body}]))

    async def finish(self) -> dict[str, Any]:
        """The whole response.

        Raises:
          what the engine raises.
        """

        def feed(arrived: Sequence[ChatEvent]) -> None:
            self._feed(arrived)

        await self._call.deliver(feed, self._context.stream_interval)
        self._end()
        self._keep()
        return self.response.body

    def _feed(self, arrived: Sequence[ChatEvent]) -> list[Event]:
        return [event for one in arrived for event in self._writer.feed(one)]

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
