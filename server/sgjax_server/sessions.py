"""SGLang's sessions: conversations as token ids, kept here so that a client sends only what is new.

A session is a tree of requests. Each is continued, replaced or branched from by its id; the engine's prefix cache holds
the computed part as it does for every request.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from array import array
from collections.abc import Callable, Sequence

from sgjax.types import RequestError
from sgjax_server.errors import ApiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a request continues its session: from which request (None: none), in its place or after it.

    `offset` cuts what came before as a slice does: tokens from there on are dropped; 0 and None drop nothing.
    """

    rid: str | None = None
    offset: int | None = None
    replace: bool = False
    drop_previous_output: bool = False


@dataclasses.dataclass(eq=False)
class _Node:
    """A request: its whole prompt, and its output when it has ended."""

    rid: str
    parent: _Node | None
    input_ids: array[int]
    output_ids: array[int] | None = None
    children: list[_Node] = dataclasses.field(default_factory=list)

    def descendants(self) -> list[_Node]:
        found = list(self.children)
        for node in found:  # which grows meanwhile
            found += node.children
        return found

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids) + len(self.output_ids or ())


class Session:
    """One session's requests.

    Args:
      is_linear: requests only append to the last one, which alone is kept; SGLang calls this streaming.
      idle_s: the session may be forgotten after this time without a request.
      max_tokens: what its requests, each with the whole of its prompt, may hold together.
    """

    def __init__(self, id: str, *, is_linear: bool, idle_s: float, max_tokens: int):
        self.id = id
        self.num_tokens = 0
        self._is_linear = is_linear
        self._max_tokens = max_tokens
        self._idle_s = idle_s
        self._nodes: dict[str, _Node] = {}
        self._used_s = time.monotonic()

    @property
    def is_running(self) -> bool:
        return any(node.output_ids is None for node in self._nodes.values())

    @property
    def is_idle(self) -> bool:
        return not self.is_running and time.monotonic() - self._used_s > self._idle_s

    def prompt(self, how: Continuation, new_ids: Sequence[int], bos_token_id: int | None) -> list[int]:
        """The whole prompt of a request that brings `new_ids`.

        Raises:
          RequestError: `how` names a request that the session has not, or that has not ended; the session is full.
        """
        base = self._base(how)
        before = array("i")
        if base is not None:
            before = base.input_ids if how.drop_previous_output else base.input_ids + (base.output_ids or before)
            if how.offset:
                before = before[: how.offset]
            if new_ids and new_ids[0] == bos_token_id:  # it begins a text, and this one has begun
                new_ids = new_ids[1:]
        num_tokens = self.num_tokens + len(before) + len(new_ids)
        if num_tokens > self._max_tokens:
            raise RequestError("session_params", f"the session would hold {num_tokens} tokens of {self._max_tokens}")
        return [*before, *new_ids]

    def begin(
        self, rid: str, how: Continuation, input_ids: Sequence[int], abort: Callable[[str], object]
    ) -> SessionTurn:
        """Records a request that has been submitted, and aborts those in whose place it comes."""
        self._used_s = time.monotonic()
        base = self._base(how)
        if how.replace:
            gone = list(self._nodes.values()) if base is None else base.descendants()
            for node in [*gone, base]:
                if node is not None and node.output_ids is None:
                    abort(node.rid)
            for node in gone:
                self._remove(node)
        self._add(_Node(rid, base, array("i", input_ids)))
        return SessionTurn(self, rid)

    def end(self, rid: str, output_ids: Sequence[int]) -> None:
        """Records a request's output: what it may be continued from."""
        self._used_s = time.monotonic()
        node = self._nodes.get(rid)
        if node is None or node.output_ids is not None:  # it has been replaced
            return
        node.output_ids = array("i", output_ids)
        self.num_tokens += len(output_ids)
        if self._is_linear:
            for other in [other for other in self._nodes.values() if other is not node]:
                self._remove(other)
            node.parent = None

    def _base(self, how: Continuation) -> _Node | None:
        if self._is_linear:
            return self._last(how)
        if how.rid is None:
            return None
        base = self._nodes.get(how.rid)
        if base is None:
            raise RequestError("session_params", f"the session has no request {how.rid!r}")
        if base.output_ids is None and not how.replace:
            raise RequestError("session_params", f"the request {how.rid!r} has not ended, so nothing can follow it")
        return base

    def _last(self, how: Continuation) -> _Node | None:
        if how.replace or how.offset or how.drop_previous_output:
            raise RequestError("session_params", "a streaming session only appends")
        if self.is_running:
            raise RequestError("session_params", "the streaming session has a request that has not ended")
        return next(iter(self._nodes.values()), None)

    def _add(self, node: _Node) -> None:
        if (same := self._nodes.get(node.rid)) is not None:
            for old in [same, *same.descendants()]:
                self._remove(old)
        self._nodes[node.rid] = node
        self.num_tokens += node.num_tokens
        if node.parent is not None:
            node.parent.children.append(node)

    def _remove(self, node: _Node) -> None:
        if self._nodes.pop(node.rid, None) is not None:
            self.num_tokens -= node.num_tokens
        if node.parent is not None and node in node.parent.children:
            node.parent.children.remove(node)


class SessionTurn:
    """One request of a session while it runs.

    Attributes:
      output_ids: what has been generated so far, to be kept up to date.
    """

    def __init__(self, session: Session, rid: str):
        self.output_ids: Sequence[int] = ()
        self._session = session
        self._rid = rid

    def close(self) -> None:
        """The request has ended, in whatever way: it may be continued from here."""
        self._session.end(self._rid, self.output_ids)


class SessionStore:
    """The open sessions of this process, the one used last at the end.

    Args:
      max_sessions, max_tokens: bounds over all; beyond them the sessions used least recently are forgotten.
      idle_s: how long a session is kept unused when it does not say.
    """

    def __init__(self, *, max_sessions: int, max_tokens: int, idle_s: float):
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._idle_s = idle_s
        self._sessions: dict[str, Session] = {}

    def open(self, id: str | None, *, is_linear: bool, idle_s: float | None) -> str:
        """Opens a session; gives its id.

        Raises:
          RequestError: the id is in use. ApiError: 429, there are too many, and all of them are at work.
        """
        self._forget_idle()
        if id is not None and id in self._sessions:
            raise RequestError("session_id", f"the session {id!r} is open already")
        id = id or uuid.uuid4().hex
        self._make_room(num_sessions=1)
        if len(self._sessions) >= self._max_sessions:
            raise ApiError(429, f"{self._max_sessions} sessions are at work, the limit", code="too_many_sessions")
        self._sessions[id] = Session(
            id,
            is_linear=is_linear,
            idle_s=self._idle_s if idle_s is None else idle_s,
            max_tokens=self._max_tokens,
        )
        return id

    def get(self, id: str) -> Session:
        """An open session, which counts as used.

        Raises:
          RequestError: there is none of this id.
        """
        self._forget_idle()
        session = self._sessions.pop(id, None)
        if session is None:
            raise RequestError(
                "session_params",
                f"the session {id!r} is not open here: it was closed or forgotten, or another HTTP worker has it",
            )
        self._sessions[id] = session
        self._make_room(keep=session)
        return session

    def close(self, id: str) -> None:
        """Forgets a session; its running requests go on, for their clients."""
        if self._sessions.pop(id, None) is None:
            raise RequestError("session_id", f"the session {id!r} is not open here")

    def _forget_idle(self) -> None:
        for session in [session for session in self._sessions.values() if session.is_idle]:
            del self._sessions[session.id]

    def _make_room(self, num_sessions: int = 0, keep: Session | None = None) -> None:
        """Forgets sessions, the least recently used first, until the bounds hold for `num_sessions` more."""
        num_tokens = sum(session.num_tokens for session in self._sessions.values())
        for session in list(self._sessions.values()):
            if len(self._sessions) + num_sessions <= self._max_sessions and num_tokens <= self._max_tokens:
                return
            if session is not keep and not session.is_running:
                num_tokens -= session.num_tokens
                del self._sessions[session.id]
