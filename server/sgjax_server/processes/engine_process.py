"""The engine's process: takes requests as messages, sends token events back, says that it is alive."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import zmq

from sgjax.config import ConfigError
from sgjax.errors import EngineError, QueueFull, RequestError
from sgjax_server.commands.loading import explain
from sgjax_server.logs import set_log_level, set_up_logging
from sgjax_server.processes import messages
from sgjax_server.processes.lines import (
    Beat,
    Fault,
    LaunchEngine,
    Loading,
    Logging,
    Ready,
    Rejected,
    ReportPipe,
    Weights,
    WorkerLost,
    decode_launch_engine,
    decode_to_engine,
)
from sgjax_server.processes.messages import (
    Abort,
    Call,
    ErrorInfo,
    Failed,
    Forget,
    Refused,
    Reply,
    Started,
    Step,
    Submit,
)

if TYPE_CHECKING:
    from sgjax.engine.outputs import Refusal, Stop
    from sgjax.engine.token_engine import TokenEngine
    from sgjax.types import Request, TokenEvent

_logger = logging.getLogger(__name__)

BEAT_S = 0.5
_REJECTED = 3  # exit status
_FAILED = 1


class Outbox:
    """Sends what the engine says to the HTTP process that asked. An engine's `EventSink`, for any thread."""

    def __init__(self, context: zmq.Context, folder: str, generation: int):
        self._context = context
        self._folder = folder
        self._generation = generation
        self._lock = threading.Lock()  # ZeroMQ's sockets are for one thread at a time
        self._sockets: dict[int, zmq.Socket] = {}
        self._lost: set[int] = set()
        self._workers: dict[str, int] = {}
        self._num_open: dict[str, int] = {}

    def send(self, worker: int, message: msgspec.Struct) -> None:
        """To one that is lost, nothing."""
        frame = messages.encode(message)
        with self._lock:
            if worker not in self._lost:
                self._socket(worker).send(frame, zmq.NOBLOCK)

    def _socket(self, worker: int) -> zmq.Socket:
        if worker not in self._sockets:
            socket = self._sockets[worker] = self._context.socket(zmq.PUSH)
            socket.set_hwm(0)  # an HTTP process that lags must not hold up the engine
            socket.linger = 0
            socket.connect(messages.worker_endpoint(self._folder, self._generation, worker))
        return self._sockets[worker]

    def lose(self, worker: int) -> None:
        """An HTTP process is no more: what was meant for it goes nowhere."""
        with self._lock:
            self._lost.add(worker)
            if (socket := self._sockets.pop(worker, None)) is not None:
                socket.close()

    def has_lost(self, worker: int) -> bool:
        return worker in self._lost

    # --- for the engine's thread ------------------------------------------------------------------------------

    def register(self, request: Request, worker: int) -> None:
        """Before a request's first event."""
        self._workers[request.rid] = worker
        self._num_open[request.rid] = request.sampling.n

    def owns(self, worker: int, rid: str) -> bool:
        return self._workers.get(rid) == worker

    def rids_of(self, worker: int) -> list[str]:
        return [rid for rid, of in self._workers.items() if of == worker]

    def started(self, rid: str) -> None:
        self.send(self._workers[rid], Started(rid))

    def refused(self, rid: str, error: Refusal) -> None:
        self.send(self._forget(rid), Refused(rid, ErrorInfo.of(error)))

    def process(self, events: list[TokenEvent]) -> list[Stop]:
        by_worker: dict[int, list[TokenEvent]] = {}
        for event in events:
            by_worker.setdefault(self._workers[event.rid], []).append(event)
            if event.finish is not None:
                self._num_open[event.rid] -= 1
                if not self._num_open[event.rid]:
                    self._forget(event.rid)
        for worker, told in by_worker.items():
            self.send(worker, Step(told))
        return []  # stops in the text are found where the text is

    def _forget(self, rid: str) -> int:
        del self._num_open[rid]
        return self._workers.pop(rid)

    def failed(self, error: EngineError) -> None:
        for worker in list(self._sockets):
            self.send(worker, Failed(str(error)))


class EngineServer:
    """Does what messages ask of an engine."""

    def __init__(self, engine: TokenEngine, outbox: Outbox, reports: ReportPipe):
        self._engine = engine
        self._outbox = outbox
        self._reports = reports
        self._controls = ThreadPoolExecutor(4, "sgjax-control")  # they wait for a step, or for a checkpoint

    def close(self) -> None:
        """Waits for the controls at work."""
        self._controls.shutdown()

    def handle(self, message: Submit | Abort | Call | Forget) -> None:
        match message:
            case Submit(worker) | Call(worker) if self._outbox.has_lost(worker):
                pass  # it was on its way when its sender died
            case Submit():
                self._submit(message)
            case Abort(rid, index, reason, worker):
                only_if = None if worker is None else lambda: self._outbox.owns(worker, rid)
                self._engine.abort(rid, index, reason, only_if=only_if)
            case Call(method="metrics" | "stats_now"):  # they wait for nothing, and so tell of an engine that hangs too
                self._call(message)
            case Call():
                self._controls.submit(self._call, message)
            case Forget(worker):
                self._outbox.lose(worker)
                self._controls.submit(self._forget_worker, worker)

    def _submit(self, message: Submit) -> None:
        request, worker = message.request, message.worker
        try:
            self._engine.submit_tokens(
                request, lambda: self._outbox.register(request, worker), arrival_s=message.arrival_s
            )
        except (RequestError, QueueFull, EngineError) as error:
            self._outbox.send(worker, Refused(request.rid, ErrorInfo.of(error)))
            return
        if request.sampling.grammar is None:  # the engine's own word would come a step later
            self._outbox.send(worker, Started(request.rid))

    def _call(self, call: Call) -> None:
        reply = Reply(call.number)
        try:
            result = getattr(self._engine, call.method)(*call.arguments)
            reply.result = msgspec.Raw(messages.encode(result))
            if call.method == "update_weights":
                self._reports.send(Weights(call.arguments[0], result))
        except Exception as error:
            if not isinstance(error, (RequestError, EngineError)):
                _logger.exception("%s failed", call.method)
            reply.error = ErrorInfo.of(error)
        self._outbox.send(call.worker, reply)

    def _forget_worker(self, worker: int) -> None:
        """Ends the requests of an HTTP process that is no more."""
        for rid in self._engine.call(lambda: self._outbox.rids_of(worker)):
            self._engine.abort(rid)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor says what follows
    reports = ReportPipe()
    launch = decode_launch_engine(sys.stdin.readline())
    set_up_logging(launch.log_level, launch.log_format)
    heart = _Heart(reports)
    context = zmq.Context()
    inbox = context.socket(zmq.PULL)
    inbox.set_hwm(0)
    endpoint = messages.engine_endpoint(launch.folder, launch.generation)
    inbox.bind(endpoint)
    _obey_supervisor(context, endpoint)
    outbox = Outbox(context, launch.folder, launch.generation)
    engine = _make_engine(launch, outbox, reports)
    server = EngineServer(engine, outbox, reports)
    heart.engine = engine
    freeze_what_stays(engine)
    reports.send(Ready(engine.info))
    poller = zmq.Poller()
    poller.register(inbox, zmq.POLLIN)
    while engine.is_alive:
        if poller.poll(int(1000 * BEAT_S)):
            server.handle(messages.decode_to_engine(inbox.recv()))
    reports.send(Fault(str(engine.failure)))
    _exit(_FAILED)


def _make_engine(launch: LaunchEngine, outbox: Outbox, reports: ReportPipe) -> TokenEngine:
    """The engine; where that fails, the end of the process."""
    reports.send(Loading("starting jax", 0.0))
    try:
        from sgjax.engine.build import build_core
        from sgjax.engine.token_engine import TokenEngine

        engine = TokenEngine(build_core(launch.config, lambda *stage: reports.send(Loading(*stage))), outbox)
        if launch.weights is not None:
            engine.update_weights(launch.weights.model_path, launch.weights.weight_version)
        return engine
    except BaseException as error:
        explain(error)
        message = str(error) if isinstance(error, (ValueError, ConfigError)) else f"{type(error).__name__}: {error}"
        reports.send(Rejected(message))
        _exit(_REJECTED)
        raise


def freeze_what_stays(engine: TokenEngine) -> threading.Thread:
    """Takes what is there, now and when all steps are compiled, from the garbage collector's care.

    A full collection would go through all of it, 450,000 objects that never go away: 0.2 s without a step.
    Returns what waits for the steps to be compiled.
    """

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    def freeze_when_compiled() -> None:
        with contextlib.suppress(Exception):  # a step that needs what failed says so
            engine.wait_until_compiled()
        freeze()

    freeze()
    waiting = threading.Thread(target=freeze_when_compiled, name="sgjax-freeze", daemon=True)
    waiting.start()
    return waiting


class _Heart:
    """Tells the supervisor twice a second that the process lives, and what step it is at."""

    def __init__(self, reports: ReportPipe):
        self.engine: TokenEngine | None = None
        self._reports = reports
        threading.Thread(target=self._beat, name="sgjax-heart", daemon=True).start()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._reports.send(Beat(None if self.engine is None else self.engine.step_report()))
            pause.wait(BEAT_S)


def _obey_supervisor(context: zmq.Context, endpoint: str) -> None:
    """Starts what follows the supervisor's lines. When they end, so does this process: nobody is left to serve."""

    def obey() -> None:
        inbox = context.socket(zmq.PUSH)
        inbox.connect(endpoint)
        for line in sys.stdin:
            match decode_to_engine(line):
                case WorkerLost(worker):  # in order with what that process has sent
                    inbox.send(messages.encode(Forget(worker)))
                case Logging(log_level=level) if level is not None:
                    set_log_level(level)
        _exit(0)

    threading.Thread(target=obey, name="sgjax-supervised", daemon=True).start()


def _exit(status: int) -> None:
    """Ends the process at once: a thread may be inside the compiler, and an ordinary exit would wait for it."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
