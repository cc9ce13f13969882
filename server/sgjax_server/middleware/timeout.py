"""Ends requests that take too long."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgjax_server.errors import ApiError, error_response


class LimitTime:
    """ASGI middleware: a request that has not been answered in time ends with 504, and leaves the engine.

    A response that is a stream takes the limit over, with `taken_timeout`, to say the end in its own form.
    """

    def __init__(self, app: ASGIApp, timeout_s: float):
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        has_started = False

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        timeout = asyncio.timeout(self._timeout_s)
        try:
            async with timeout:
                scope.setdefault("state", {})["timeout"] = timeout
                await self._app(scope, receive, noting_send)
        except TimeoutError:
            if not timeout.expired():
                raise  # somebody else's
            if not has_started:  # else the client reads too slowly to be told anything
                await error_response(scope["path"], timeout_error())(scope, receive, send)


def taken_timeout(scope: Scope) -> float | None:
    """Seconds left to a request, which its response sees to from now on; None without a limit."""
    timeout: asyncio.Timeout | None = scope.get("state", {}).get("timeout")
    if timeout is None or (deadline := timeout.when()) is None:
        return None
    timeout.reschedule(None)
    return max(0.0, deadline - asyncio.get_running_loop().time())


def timeout_error() -> ApiError:
    return ApiError(504, "the request took longer than the server allows", code="request_timeout")
