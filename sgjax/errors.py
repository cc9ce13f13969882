"""What a caller is told when a request is not taken, or cannot be finished."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that is refused. `field` is the name under which the caller passed the offending value."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class RequestAborted(RuntimeError):
    """A request that was ended before its time: by whoever operates the engine, or by what it asked for itself."""


class QueueFull(RuntimeError):
    """The waiting queue is full. The request is fine and may be sent again later."""


class EngineError(RuntimeError):
    """The engine has failed or was closed; nothing of this request is still running."""
