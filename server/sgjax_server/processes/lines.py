"""What the supervisor and its children say to each other: JSON lines over the child's standard input and output."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Literal

import msgspec

from sgjax.config import EngineConfig
from sgjax.engine.info import EngineInfo, StepReport
from sgjax_server.config import LogFormat, LogLevel, RequestDetail, ServerConfig

# --- to children ----------------------------------------------------------------------------------------------


class Weights(msgspec.Struct, tag=True):
    """From the engine: other weights serve now. A later engine starts with them."""

    model_path: str
    weight_version: str


class Logging(msgspec.Struct, tag=True):
    """From an HTTP process that was told so, and then to all of them and the engine: what is logged from now on.

    `log_level` is None where nobody changed it.
    """

    log_requests: RequestDetail
    log_level: LogLevel | None = None


class LaunchEngine(msgspec.Struct, tag=True):
    """The engine's first line. `folder`: for sockets. `generation`: how many engines there were before."""

    config: EngineConfig
    log_level: LogLevel
    log_format: LogFormat
    folder: str
    generation: int
    weights: Weights | None = None


class LaunchHttp(msgspec.Struct, tag=True):
    """An HTTP process's first line. `worker`: its number, which no other process of the server has or had.

    `folder`: for sockets, and for what HTTP processes share. `listener`: the inherited descriptor of the listening
    socket. `started_s`: when the server was started, in seconds of Unix time.
    """

    config: ServerConfig
    folder: str
    worker: int
    listener: int
    started_s: int


class EngineState(msgspec.Struct, tag=True):
    """To HTTP processes, whenever it changes. `info` is there when the engine is ready."""

    status: Literal["loading", "ready", "restarting", "failed"]
    generation: int = 0
    message: str = ""
    progress: float = 0.0
    info: EngineInfo | None = None


class Drain(msgspec.Struct, tag=True):
    """To HTTP processes: take no more connections, finish what is at work, end."""


class WorkerLost(msgspec.Struct, tag=True):
    """To the engine: an HTTP process has died, and nobody waits for its requests any more."""

    worker: int


# --- from children --------------------------------------------------------------------------------------------


class Loading(msgspec.Struct, tag=True):
    stage: str
    fraction: float


class Ready(msgspec.Struct, tag=True):
    """The engine can take requests."""

    info: EngineInfo


class Beat(msgspec.Struct, tag=True):
    """The engine process is alive; `step` is what it is at."""

    step: StepReport | None


class Rejected(msgspec.Struct, tag=True):
    """The engine cannot be made, and another try would end in the same way. It has said why on standard error."""

    message: str


class Fault(msgspec.Struct, tag=True):
    """The engine has failed; its process ends."""

    message: str


class Serving(msgspec.Struct, tag=True):
    """An HTTP process takes requests for the engine of this generation."""

    generation: int


_encode = msgspec.json.Encoder().encode
decode_launch_engine = msgspec.json.Decoder(LaunchEngine).decode
decode_launch_http = msgspec.json.Decoder(LaunchHttp).decode
decode_to_http = msgspec.json.Decoder(EngineState | Logging | Drain).decode
decode_to_engine = msgspec.json.Decoder(Logging | WorkerLost).decode
decode_from_engine = msgspec.json.Decoder(Loading | Ready | Beat | Weights | Rejected | Fault).decode
decode_from_http = msgspec.json.Decoder(Serving | Logging).decode


def encode_line(message: msgspec.Struct) -> bytes:
    return _encode(message) + b"\n"


class ReportPipe:
    """A child's standard output, for reports alone: what anything else prints goes to standard error instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def send(self, report: msgspec.Struct) -> None:
        """From any thread. A supervisor that is gone is no error: its end is noticed on standard input."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._out.write(encode_line(report))
            self._out.flush()
