"""What HTTP processes and the engine process say to each other: typed MessagePack, one message a ZeroMQ frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from sgjax.errors import EngineError, QueueFull, RequestError
from sgjax.types import FinishReason, Request, TokenEvent

ControlName = Literal[
    "stats",
    "stats_now",
    "live",
    "metrics",
    "abort_requests",
    "flush_cache",
    "pause",
    "resume",
    "update_weights",
    "start_profile",
    "stop_profile",
]


class Submit(msgspec.Struct, tag=0, array_like=True):
    """A request of the HTTP process `worker`, and when it came by `time.monotonic`, which all processes share."""

    worker: int
    request: Request
    arrival_s: float


class Abort(msgspec.Struct, tag=1, array_like=True):
    """The end of a request, or of one sample of it, whose text has come to a stop.

    `worker`: only if the request is of this HTTP process. An id that it was refused may be another's.
    """

    rid: str
    index: int | None = None
    reason: FinishReason | None = None
    worker: int | None = None


class Call(msgspec.Struct, tag=2, array_like=True):
    """A control of the engine, by the name of its method. `number` comes back with the reply."""

    worker: int
    number: int
    method: ControlName
    arguments: list[Any]


class Forget(msgspec.Struct, tag=3, array_like=True):
    """An HTTP process has died: nobody waits for what it asked, nor for what may still be read of it."""

    worker: int


class Started(msgspec.Struct, tag=10, array_like=True):
    rid: str


class ErrorInfo(msgspec.Struct, array_like=True):
    """An exception of `sgjax.errors`, or the text of any other."""

    kind: Literal["request", "queue_full", "engine"]
    message: str
    field: str = ""

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        match error:
            case RequestError(field=field, message=message):
                return cls("request", message, field)
            case QueueFull():
                return cls("queue_full", str(error))
            case EngineError():
                return cls("engine", str(error))
            case _:
                return cls("engine", f"{type(error).__name__}: {error}")

    def exception(self) -> RequestError | QueueFull | EngineError:
        match self.kind:
            case "request":
                return RequestError(self.field, self.message)
            case "queue_full":
                return QueueFull(self.message)
            case "engine":
                return EngineError(self.message)


class Refused(msgspec.Struct, tag=11, array_like=True):
    rid: str
    error: ErrorInfo


class Step(msgspec.Struct, tag=12, array_like=True):
    """What one step says about the requests of one HTTP process."""

    events: list[TokenEvent]


class Reply(msgspec.Struct, tag=13, array_like=True):
    number: int
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: ErrorInfo | None = None


class Failed(msgspec.Struct, tag=14, array_like=True):
    """The engine has ended; nothing further comes."""

    message: str


encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(Submit | Abort | Call | Forget).decode
decode_from_engine = msgspec.msgpack.Decoder(Started | Refused | Step | Reply | Failed).decode


def engine_endpoint(folder: str, generation: int) -> str:
    """Where the engine of a generation takes messages."""
    return f"ipc://{Path(folder) / f'engine-{generation}'}"


def worker_endpoint(folder: str, generation: int, worker: int) -> str:
    """Where an HTTP process takes what the engine of a generation says."""
    return f"ipc://{Path(folder) / f'http-{worker}-{generation}'}"
