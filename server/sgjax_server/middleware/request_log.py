"""One log line per request: which, how it ended, how long it took, how many tokens. Contents only when asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgjax.types import FinishReason, Receipt, Request
from sgjax_server import direct_write
from sgjax_server.config import RequestDetail
from sgjax_server.middleware.access import OPEN_PATHS

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 * 1024  # of each body, in a line


@dataclass
class RequestLog:
    """How much is logged, which may change at any time."""

    detail: RequestDetail = "off"


@dataclass(frozen=True, slots=True)
class EndedSample:
    """`ended_ns`: when this process heard of the end, by the system's clock."""

    rid: str
    index: int
    receipt: Receipt | None
    ended_ns: int


@dataclass
class RequestRecord:
    """What an HTTP request asked of the engine, and got."""

    rids: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish: list[str] = field(default_factory=list)
    ended: list[EndedSample] = field(default_factory=list)
    num_open: int = 0

    def begin(self, requests: Sequence[Request]) -> None:
        self.rids += [request.rid for request in requests]
        self.prompt_tokens += sum(len(request.input_ids) for request in requests)
        self.num_open += sum(request.sampling.n for request in requests)

    def end(self, rid: str, index: int, finish: FinishReason, receipt: Receipt | None) -> None:
        """One sample has ended."""
        self.num_open -= 1
        self.finish.append(finish.kind)
        self.ended.append(EndedSample(rid, index, receipt, time.time_ns()))
        if receipt is not None:
            self.cached_tokens += receipt.cached_tokens
            self.completion_tokens += receipt.completion_tokens

    def facts(self) -> dict[str, Any]:
        if not self.rids:
            return {}
        return {
            "id": self.rids[0] if len(self.rids) == 1 else self.rids,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "finish": ",".join([*sorted(set(self.finish)), *(["unfinished"] if self.num_open else [])]),
        }


class LogRequests:
    """ASGI middleware: a line when a response has ended or its client has gone. Probes get none.

    Routes find the record to fill at `request.state.record`, whether it is logged or not.
    """

    def __init__(self, app: ASGIApp, request_log: RequestLog):
        self._app = app
        self._log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord()
        scope.setdefault("state", {})["record"] = record
        if self._log.detail == "off" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        with_bodies = self._log.detail == "full"
        if with_bodies:
            direct_write.withdraw(scope)
        watch = _Watch(receive, send, with_bodies=with_bodies)
        try:
            await self._app(scope, watch.receive, watch.send)
        finally:
            facts = {"route": f"{scope['method']} {scope['path']}", **watch.facts(), **record.facts()}
            log.info("request", extra={"facts": facts})


class _Watch:
    """Both directions of one request, with their times."""

    def __init__(self, receive: Receive, send: Send, *, with_bodies: bool):
        self._receive = receive
        self._send = send
        self._bodies: dict[str, bytearray] = {"request": bytearray(), "response": bytearray()} if with_bodies else {}
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        self._status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if self._bodies:
            self._add("request", message)
        return message

    async def send(self, message: Message) -> None:
        if self._first_s is None and message["type"] == "http.response.body":
            self._first_s = time.monotonic() - self._began_s
        elif message["type"] == "http.response.start":
            self._status = message["status"]
        if self._bodies:
            self._add("response", message)
        await self._send(message)

    def facts(self) -> dict[str, Any]:
        bodies = {name: bytes(body).decode(errors="replace") for name, body in self._bodies.items()}
        first_s = None if self._first_s is None else round(self._first_s, 6)
        total_s = round(time.monotonic() - self._began_s, 6)
        return {"status": self._status, "first_byte_s": first_s, "total_s": total_s, **bodies}

    def _add(self, name: str, message: Message) -> None:
        body = self._bodies[name]
        body += message.get("body", b"")[: _MAX_BODY_BYTES - len(body)]
