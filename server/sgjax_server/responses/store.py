"""Responses that are kept, so that later requests can read them and go on from them."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from sgjax_server.database import transaction
from sgjax_server.errors import ApiError
from sgjax_server.responses.conversation import Item


@dataclasses.dataclass
class StoredResponse:
    """A response and what it answered.

    Attributes:
      body: the response as the API shows it; its `previous_response_id` leads to what came before.
      input: the items of its own request.
      is_running: it is being generated in the background.
    """

    body: dict[str, Any]
    input: list[Item]
    is_running: bool = False

    @property
    def id(self) -> str:
        return self.body["id"]


class ResponseStore:
    """Bounded by number and size: beyond, the responses used least recently are forgotten. Not those at work.

    Args:
      worker: the number of this HTTP process.
      max_bytes: about what all of them may take, by their JSON.
    """

    def __init__(self, database: sqlite3.Connection, worker: int, *, max_responses: int, max_bytes: int):
        self._database = database
        self._worker = worker
        self._max_responses = max_responses
        self._max_bytes = max_bytes

    def put(self, response: StoredResponse) -> None:
        """Keeps a response: one that has ended, or that this process generates."""
        body, input = to_json(response.body, inf_nan_mode="null"), to_json(response.input)
        owner = self._worker if response.is_running else None
        with transaction(self._database):
            self._database.execute(
                "INSERT INTO responses (id, owner, used_s, num_bytes, input, body) VALUES (?, ?, ?, ?, ?, ?)",
                (response.id, owner, time.monotonic(), len(input) + len(body), input.decode(), body.decode()),
            )
            self._make_room()

    def end(self, id: str, body: dict[str, Any]) -> bool:
        """What has become of a response at work. False when its end is known already, or the response forgotten."""
        text = to_json(body, inf_nan_mode="null")
        with transaction(self._database):
            cursor = self._database.execute(
                "UPDATE responses SET owner = NULL, used_s = ?, body = ?, "
                "num_bytes = num_bytes + ? - length(CAST(body AS BLOB)) WHERE id = ? AND owner IS NOT NULL",
                (time.monotonic(), text.decode(), len(text), id),
            )
            self._make_room()
        return cursor.rowcount == 1

    def get(self, id: str, param: str | None = None) -> StoredResponse:
        """A response, which counts as used.

        Raises:
          ApiError: 404, there is none of this id.
        """
        rows = self._database.execute(
            "UPDATE responses SET used_s = ? WHERE id = ? RETURNING body, input, owner IS NOT NULL",
            (time.monotonic(), id),
        ).fetchall()
        if not rows:
            raise ApiError(404, _gone(id), param=param, code="response_not_found")
        ((body, input, is_running),) = rows
        return StoredResponse(json.loads(body), json.loads(input), bool(is_running))

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

    def delete(self, id: str) -> bool:
        """Forgets a response; whether it was at work. Raises ApiError: 404."""
        rows = self._database.execute(
            "DELETE FROM responses WHERE id = ? RETURNING owner IS NOT NULL", (id,)
        ).fetchall()
        if not rows:
            raise ApiError(404, _gone(id), code="response_not_found")
        return bool(rows[0][0])

    def _make_room(self) -> None:
        ((count, num_bytes),) = self._database.execute("SELECT * FROM responses_total").fetchall()
        while count > self._max_responses or num_bytes > self._max_bytes:
            oldest = self._database.execute(
                "DELETE FROM responses WHERE id = "
                "(SELECT id FROM responses WHERE owner IS NULL ORDER BY used_s LIMIT 1) RETURNING num_bytes"
            ).fetchall()
            if not oldest:
                return
            count -= 1
            num_bytes -= oldest[0][0]


def _gone(id: str) -> str:
    return f"no response {id!r} is stored: it never was, or it has been forgotten"
