"""Reads each request's body, up to a size and within a time, before anything is done for the request.

What no route could answer is refused here too: text that is no Unicode, and compressed bodies.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgjax_server.errors import ApiError, error_response

# Where surrogates may be: escaped, as bytes, or in another encoding than UTF-8. One pattern of all is 20 times slower.
_SURROGATES = (
    re.compile(rb"\\u[dD][89a-fA-F]"),
    re.compile(rb"\xed[\xa0-\xbf]"),
    re.compile(rb"\A(?:.?\0|\xff\xfe|\xfe\xff)", re.DOTALL),
)


class ReadBody:
    """ASGI middleware: hands the application a body that is complete, or answers 400, 408, 413 or 415.

    Args:
      max_bytes: a longer body is refused; by its Content-Length at once, else when that much of it has come.
      timeout_s: for the whole body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float):
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            return await self._app(scope, receive, send)
        try:
            _check_encoding(scope)
            body = await self._read(scope, receive)
            _check_unicode(body or b"")
        except ApiError as error:
            return await error_response(scope["path"], error)(scope, receive, send)
        if body is None:
            return  # the client is gone
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        too_large = ApiError(413, f"the body: has more than {self._max_bytes} bytes", code="body_too_large")
        if _content_length(scope) > self._max_bytes:
            raise too_large
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    num_bytes += len(parts[-1])
                    if num_bytes > self._max_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body: did not arrive within {self._timeout_s:g} s", code="body_timeout") from None


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _check_encoding(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-encoding" and (coding := value.decode("latin-1").strip().lower()) not in ("", "identity"):
            raise ApiError(415, f"Content-Encoding: {coding!r} is not supported, send the body as it is")


def _check_unicode(body: bytes) -> None:
    """Refuses lone surrogates, which JSON can write but no tokenizer reads and no answer could repeat."""
    if not any(pattern.search(body) for pattern in _SURROGATES):
        return
    try:
        fields = json.loads(body)
        for name, value in fields.items() if isinstance(fields, dict) else ():
            _check_field(name, value)
    except (ValueError, RecursionError):
        return  # whoever parses it says what is wrong


def _check_field(name: str, value: Any) -> None:
    if not _is_unicode(name):
        raise ApiError(400, "the body: the name of a field is not valid Unicode")
    if not _is_unicode(value):
        raise ApiError(400, f"{name}: is not valid Unicode", param=name)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _content_length(scope: Scope) -> int:
    """What the header says, which the HTTP parser has checked; 0 without one."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, and then what comes after it."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
