"""Responses kept in this process, so that later requests can read them and go on from them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from sgjax_server.errors import ApiError
from sgjax_server.responses.conversation import Item


@dataclasses.dataclass
class StoredResponse:
    """A response and what it answered.

    Attributes:
      body: the response as the API shows it; its `previous_response_id` leads to what came before.
      input: the items of its own request.
      work: what generates it, where that goes on in the background.
    """

    body: dict[str, Any]
    input: list[Item]
    work: asyncio.Task | None = None

    @property
    def id(self) -> str:
        return self.body["id"]

    @property
    def is_running(self) -> bool:
        return self.work is not None and not self.work.done()

    @property
    def num_bytes(self) -> int:
        """About what it takes, by its JSON."""
        return len(to_json(self.body)) + len(to_json(self.input))


class ResponseStore:
    """Bounded by number and size: beyond, the responses used least recently are forgotten. Not those at work."""

    def __init__(self, *, max_responses: int, max_bytes: int):
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: dict[str, StoredResponse] = {}
        self._sizes: dict[str, int] = {}

    def put(self, response: StoredResponse) -> None:
        """Keeps a response, or what has become of one that is kept."""
        self._stored.pop(response.id, None)
        self._stored[response.id] = response
        self._sizes[response.id] = response.num_bytes
        self._make_room()

    def get(self, id: str, param: str | None = None) -> StoredResponse:
        """A response, which counts as used.

        Raises:
          ApiError: 404, there is none of this id.
        """
        response = self._stored.pop(id, None)
        if response is None:
            message = f"no response {id!r} is stored here: never, no longer, or by another HTTP worker"
            raise ApiError(404, message, param=param, code="response_not_found")
        self._stored[id] = response
        return response

    def history(self, id: str | None) -> Sequence[StoredResponse]:
        """A response and all that it goes on from, the first of them first.

        Raises:
          ApiError: 404, one of them is not there.
        """
        found = []
        while id is not None:
            found.append(self.get(id, "previous_response_id"))
            id = found[-1].body["previous_response_id"]
        return found[::-1]

    def delete(self, id: str) -> None:
        """Forgets a response, and ends its work. Raises ApiError: 404."""
        response = self.get(id)
        if response.work is not None:
            response.work.cancel()
        self._drop(id)

    def _drop(self, id: str) -> None:
        del self._stored[id], self._sizes[id]

    def _make_room(self) -> None:
        num_bytes = sum(self._sizes.values())
        for response in list(self._stored.values()):
            if len(self._stored) <= self._max_responses and num_bytes <= self._max_bytes:
                return
            if not response.is_running:
                num_bytes -= self._sizes[response.id]
                self._drop(response.id)
