"""SGLang's sessions: conversations as token ids, kept here so that a client sends only what is new.

A session is a tree of requests. Each is continued, replaced or branched from by its id; the engine's prefix cache holds
the computed part as it does for every request.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import time
import uuid
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sgjax.types import RequestError
from sgjax_server.database import transaction
from sgjax_server.errors import ApiError

# Of a session: none of its requests is at work.
_RESTS = "id NOT IN (SELECT session FROM session_requests WHERE owner IS NOT NULL)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a request continues its session: from which request (None: none), in its place or after it.

    `offset` cuts what came before as a slice does: tokens from there on are dropped; 0 and None drop nothing.
    """

    rid: str | None = None
    offset: int | None = None
    replace: bool = False
    drop_previous_output: bool = False


class _Base(NamedTuple):
    """The request that another continues; `owner` is who generates it, None when it has ended."""

    id: int
    rid: str
    owner: int | None


class SessionStore:
    """The open sessions.

    Args:
      worker: the number of this HTTP process.
      max_sessions, max_tokens: bounds over all; beyond them the sessions used least recently are forgotten. A request
        counts with the whole of its prompt.
      idle_s: how long a session is kept unused when it does not say.
    """

    def __init__(self, database: sqlite3.Connection, worker: int, *, max_sessions: int, max_tokens: int, idle_s: float):
        self._database = database
        self._worker = worker
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._idle_s = idle_s

    def open(self, id: str | None, *, is_linear: bool, idle_s: float | None) -> str:
        """Opens a session; gives its id.

        Args:
          is_linear: requests only append to the last one, which alone is kept; SGLang calls this streaming.
          idle_s: the session may be forgotten after this time without a request.

        Raises:
          RequestError: the id is in use. ApiError: 429, there are too many, and all of them are at work.
        """
        with transaction(self._database):
            self._forget_idle()
            if id is not None and self._one("SELECT 1 FROM sessions WHERE id = ?", id) is not None:
                raise RequestError("session_id", f"the session {id!r} is open already")
            id = id or uuid.uuid4().hex
            self._make_room(num_sessions=1)
            if self._one("SELECT count(*) FROM sessions")[0] >= self._max_sessions:
                raise ApiError(429, f"{self._max_sessions} sessions are at work, the limit", code="too_many_sessions")
            self._database.execute(
                "INSERT INTO sessions (id, is_linear, idle_s, used_s) VALUES (?, ?, ?, ?)",
                (id, is_linear, self._idle_s if idle_s is None else idle_s, time.monotonic()),
            )
        return id

    def prompt(self, id: str, how: Continuation, new_ids: Sequence[int], bos_token_id: int | None) -> list[int]:
        """The whole prompt of a session's request that brings `new_ids`.

        Raises:
          RequestError: there is no such session; `how` names a request that it has not, or that has not ended; it is
            full.
        """
        with transaction(self._database):
            base = self._base(id, how)
            self._make_room(keep=id)
            before = array("i")
            if base is not None:
                before = self._tokens(base, with_output=not how.drop_previous_output)
                if how.offset:
                    before = before[: how.offset]
                if new_ids and new_ids[0] == bos_token_id:  # it begins a text, and this one has begun
                    new_ids = new_ids[1:]
            num_tokens = self.num_tokens(id) + len(before) + len(new_ids)
        if num_tokens > self._max_tokens:
            raise RequestError("session_params", f"the session would hold {num_tokens} tokens of {self._max_tokens}")
        return [*before, *new_ids]

    def begin(
        self, id: str, rid: str, how: Continuation, input_ids: Sequence[int], abort: Callable[[str], object]
    ) -> SessionTurn:
        """Records a request that has been submitted, and aborts those in whose place it comes. Raises as `prompt`."""
        replaced: list[_Base] = []
        with transaction(self._database):
            base = self._base(id, how)
            if how.replace:
                replaced = self._after(id, base)
                self._remove(replaced)
            if (same := self._request(id, rid)) is not None:
                self._remove([same, *self._after(id, same)])
            cursor = self._database.execute(
                "INSERT INTO session_requests (session, rid, parent, num_tokens, owner, input_ids) "
                "VALUES (?, ?, (SELECT id FROM session_requests WHERE id = ?), ?, ?, ?)",
                (id, rid, base and base.id, len(input_ids), self._worker, array("i", input_ids).tobytes()),
            )
        if how.replace and base is not None:
            replaced.append(base)
        for request in replaced:
            if request.owner is not None:
                abort(request.rid)
        assert cursor.lastrowid is not None
        return SessionTurn(self, cursor.lastrowid)

    def end(self, request: int, output_ids: Sequence[int]) -> None:
        """Records a request's output: what it may be continued from. Nothing, where it has been replaced."""
        with transaction(self._database):
            row = self._one(
                "UPDATE session_requests SET owner = NULL, output_ids = ?, num_tokens = num_tokens + ? "
                "WHERE id = ? AND owner IS NOT NULL RETURNING session",
                array("i", output_ids).tobytes(),
                len(output_ids),
                request,
            )
            if row is None:
                return
            if self._use(*row):
                self._database.execute("DELETE FROM session_requests WHERE session = ? AND id != ?", (*row, request))

    def close(self, id: str) -> None:
        """Forgets a session; its running requests go on, for their clients. Raises RequestError: there is none."""
        if not self._database.execute("DELETE FROM sessions WHERE id = ?", (id,)).rowcount:
            raise RequestError("session_id", f"the session {id!r} is not open")

    def num_tokens(self, id: str) -> int:
        """What a session's requests hold together."""
        return self._one("SELECT num_tokens FROM sessions WHERE id = ?", id)[0]

    # --- requests, within a transaction -----------------------------------------------------------------------

    def _base(self, id: str, how: Continuation) -> _Base | None:
        """What a request continues, in a session that counts as used."""
        self._forget_idle()
        if self._use(id):
            return self._last(id, how)
        if how.rid is None:
            return None
        base = self._request(id, how.rid)
        if base is None:
            raise RequestError("session_params", f"the session has no request {how.rid!r}")
        if base.owner is not None and not how.replace:
            raise RequestError("session_params", f"the request {how.rid!r} has not ended, so nothing can follow it")
        return base

    def _use(self, id: str) -> bool:
        """Notes that a session is used now. Whether it is linear."""
        session = self._one("UPDATE sessions SET used_s = ? WHERE id = ? RETURNING is_linear", time.monotonic(), id)
        if session is None:
            raise RequestError("session_params", f"the session {id!r} is not open: it was closed, or forgotten")
        return bool(session[0])

    def _last(self, id: str, how: Continuation) -> _Base | None:
        if how.replace or how.offset or how.drop_previous_output:
            raise RequestError("session_params", "a streaming session only appends")
        requests = self._requests("SELECT id, rid, owner FROM session_requests WHERE session = ?", id)
        if any(request.owner is not None for request in requests):
            raise RequestError("session_params", "the streaming session has a request that has not ended")
        return requests[0] if requests else None

    def _request(self, id: str, rid: str) -> _Base | None:
        found = self._requests("SELECT id, rid, owner FROM session_requests WHERE session = ? AND rid = ?", id, rid)
        return found[0] if found else None

    def _after(self, id: str, base: _Base | None) -> list[_Base]:
        """All that follow a request, or all of the session."""
        if base is None:
            return self._requests("SELECT id, rid, owner FROM session_requests WHERE session = ?", id)
        return self._requests(
            "WITH RECURSIVE after (id) AS (SELECT id FROM session_requests WHERE parent = ? UNION ALL "
            "SELECT r.id FROM session_requests r JOIN after ON r.parent = after.id) "
            "SELECT id, rid, owner FROM session_requests WHERE id IN after",
            base.id,
        )

    def _tokens(self, base: _Base, *, with_output: bool) -> array[int]:
        input_ids, output_ids = self._one("SELECT input_ids, output_ids FROM session_requests WHERE id = ?", base.id)
        tokens = array("i", input_ids)
        if with_output and output_ids is not None:
            tokens.frombytes(output_ids)
        return tokens

    def _remove(self, requests: Sequence[_Base]) -> None:
        self._database.executemany("DELETE FROM session_requests WHERE id = ?", [(one.id,) for one in requests])

    # --- bounds -----------------------------------------------------------------------------------------------

    def _forget_idle(self) -> None:
        self._database.execute(f"DELETE FROM sessions WHERE used_s + idle_s < ? AND {_RESTS}", (time.monotonic(),))

    def _make_room(self, num_sessions: int = 0, keep: str | None = None) -> None:
        """Forgets sessions, the least recently used first, until the bounds hold for `num_sessions` more."""
        count, num_tokens = self._one("SELECT count(*), coalesce(sum(num_tokens), 0) FROM sessions")
        while count + num_sessions > self._max_sessions or num_tokens > self._max_tokens:
            oldest = self._one(
                f"SELECT id, num_tokens FROM sessions WHERE id IS NOT ? AND {_RESTS} ORDER BY used_s LIMIT 1", keep
            )
            if oldest is None:
                return
            count -= 1
            num_tokens -= oldest[1]
            self.close(oldest[0])

    def _one(self, query: str, *values: object) -> Any:
        """The first row of a query, or None."""
        rows = self._database.execute(query, values).fetchall()  # all of them, since the statement would stay open
        return rows[0] if rows else None

    def _requests(self, query: str, *values: object) -> list[_Base]:
        return [_Base(*row) for row in self._database.execute(query, values)]


class SessionTurn:
    """One request of a session while it runs.

    Attributes:
      output_ids: what has been generated so far, to be kept up to date.
    """

    def __init__(self, store: SessionStore, request: int):
        self.output_ids: Sequence[int] = ()
        self._store = store
        self._request = request

    def close(self) -> None:
        """The request has ended, in whatever way: it may be continued from here."""
        self._store.end(self._request, self.output_ids)
