"""A short way from a stream to its connection, past the layers between them: an ASGI extension of ours.

A streamed token is a piece of a few bytes, and each layer of middleware that hands it on costs as much as encoding it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "sgjax.direct_write"

DirectWrite = Callable[[bytes], bool]
"""Sends a piece of a body that has begun; False where it cannot go out at once, and `send` has to wait."""


def offer(cycle: RequestResponseCycle) -> None:
    """For the server: the application may write to the connection of this request."""
    scope: Any = cycle.scope
    # Weakly, since the cycle holds the scope: neither should have to wait for the garbage collector.
    scope.setdefault("extensions", {})[_EXTENSION] = functools.partial(_write, weakref.ref(cycle))


def withdraw(scope: Scope) -> None:
    """For middleware that has to see every piece."""
    scope.get("extensions", {}).pop(_EXTENSION, None)


def offered(scope: Scope) -> DirectWrite:
    """For a response. Its start and its first piece are sent, as is its end: middleware looks at these."""
    return scope.get("extensions", {}).get(_EXTENSION, lambda piece: False)


def _write(found: weakref.ref[RequestResponseCycle], piece: bytes) -> bool:
    cycle = found()
    if cycle is None or cycle.flow.write_paused or cycle.response_complete or not cycle.chunked_encoding:
        return False
    if not (cycle.disconnected or cycle.transport.is_closing()):
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True
