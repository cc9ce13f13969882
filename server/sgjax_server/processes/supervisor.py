"""Starts the processes of a server, watches them, starts the engine anew when it dies, and ends all in order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgspec

from sgjax.config import EngineConfig
from sgjax.engine.info import EngineInfo, StepReport
from sgjax_server.config import ServerConfig
from sgjax_server.database import create_database, forget_worker
from sgjax_server.logs import set_log_level
from sgjax_server.processes.lines import (
    Beat,
    Drain,
    EngineState,
    Fault,
    LaunchEngine,
    LaunchHttp,
    Loading,
    Logging,
    Ready,
    Rejected,
    Serving,
    Weights,
    WorkerLost,
    decode_from_engine,
    decode_from_http,
    encode_line,
)

_logger = logging.getLogger(__name__)

# Tries to bring an engine back, or an HTTP process, one after the other without success, before the server gives up.
MAX_FAILURES = 5
_WATCH_S = 0.5


class Child:
    """A process that is told lines and reports in lines."""

    def __init__(self, process: asyncio.subprocess.Process):
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self.reports = process.stdout

    @classmethod
    async def start(cls, module: str, launch: msgspec.Struct, **options: Any) -> Child:
        """Starts a module as a process; `options` are those of `subprocess.Popen`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
            **options,
        )
        child = cls(process)
        child.tell(launch)
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: msgspec.Struct) -> None:
        """Sends a line; one that has died hears nothing, which is noticed where its reports end."""
        if not self._stdin.is_closing():
            self._stdin.write(encode_line(message))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> str:
        """Waits for the end, and says what it was."""
        status = await self._process.wait()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class Supervisor:
    """One server. `run` it once.

    Args:
      listener: bound and listening; inherited by the HTTP processes.
      on_progress: told what is being loaded, as (what, share of it that is done).
      on_ready: told the engine's facts when every HTTP process serves it for the first time.
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        config: ServerConfig,
        listener: socket.socket,
        *,
        on_progress: Callable[[str, float], None],
        on_ready: Callable[[EngineInfo], None],
    ):
        self._engine_config = engine_config
        self._config = config
        self._listener = listener
        self._on_progress = on_progress
        self._on_ready: Callable[[EngineInfo], None] | None = on_ready
        self._state = EngineState("loading", message="starting")
        self._engine: Child | None = None
        self._workers: dict[int, Child] = {}
        self._numbers = itertools.count()
        self._serving: set[int] = set()
        self._stopping = asyncio.Event()
        self._exit_status = 0
        self._weights: Weights | None = None
        self._logging = Logging(config.log_requests, config.log_level)
        self._started_s = int(time.time())

    async def run(self) -> int:
        """Serves until a signal, or until there is no use in going on; gives the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._folder = tempfile.mkdtemp(prefix="sgjax-")  # only this user may enter it
        self._database = create_database(self._folder)
        engine = asyncio.create_task(self._keep_engine())
        workers = [asyncio.create_task(self._keep_worker()) for _ in range(self._config.http_workers)]
        try:
            await self._stopping.wait()
            self._listener.close()  # so that new clients are refused, and do not wait for somebody who will not come
            for worker in self._workers.values():
                worker.tell(Drain())
            await asyncio.gather(*workers)  # each ends within the time that draining may take
            if self._engine is not None:  # it has nothing to finish, and may be in the middle of loading
                self._engine.kill()
            await engine
        finally:
            for child in self._children():
                child.kill()
            self._database.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        return self._exit_status

    def _on_signal(self, number: int) -> None:
        """The first asks for an end in order, another for one at once."""
        if self._stopping.is_set():
            for child in self._children():
                child.kill()
        else:
            _logger.info("finishing the requests at work; another signal ends at once")
        self._stop(128 + number if number == signal.SIGINT else 0)

    def _children(self) -> list[Child]:
        return [*self._workers.values(), *([self._engine] if self._engine else ())]

    def _stop(self, exit_status: int) -> None:
        if not self._stopping.is_set():
            self._exit_status = exit_status
        self._stopping.set()

    # --- the engine -------------------------------------------------------------------------------------------

    async def _keep_engine(self) -> None:
        """Starts engines, one after the other, until the server stops."""
        num_failures = generation = 0
        while True:
            life = EngineLife(self._config.watchdog_timeout)
            self._engine = await Child.start("sgjax_server.processes.engine_process", self._launch_engine(generation))
            try:
                await self._follow_engine(self._engine, life, generation)
                why = life.why or await self._engine.ended()
            finally:
                self._engine.kill()
                await self._engine.ended()
                self._engine = None
            if self._stopping.is_set():
                return
            num_failures = 1 if life.was_ready else num_failures + 1
            if (life.rejected and generation == 0) or num_failures == MAX_FAILURES:
                self._tell_workers(EngineState("failed", generation, why))
                self._stop(1)
                return
            _logger.error("the engine process has ended (%s); starting another", why)
            self._tell_workers(EngineState("restarting", generation, f"the engine process has ended ({why})"))
            generation += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0 if life.was_ready else 2**num_failures)
                return

    def _launch_engine(self, generation: int) -> LaunchEngine:
        config = self._config
        return LaunchEngine(
            self._engine_config,
            self._logging.log_level or config.log_level,
            config.log_format,
            self._folder,
            generation,
            self._weights,
        )

    async def _follow_engine(self, engine: Child, life: EngineLife, generation: int) -> None:
        """Acts on an engine's reports, until they end."""
        watching = asyncio.create_task(self._watch(engine, life))
        try:
            while line := await engine.reports.readline():
                report = decode_from_engine(line)
                life.note(report)
                match report:
                    case Loading(stage, fraction):
                        self._on_progress(stage, fraction)
                        if generation == 0:
                            self._tell_workers(EngineState("loading", generation, stage, fraction))
                    case Ready(info):
                        self._tell_workers(EngineState("ready", generation, info=info))
                    case Weights():
                        self._weights = report
        finally:
            watching.cancel()

    async def _watch(self, engine: Child, life: EngineLife) -> None:
        """Kills an engine that hangs, and says over what."""
        while (hang := life.hang()) is None:
            await asyncio.sleep(_WATCH_S)
        life.why = hang
        _logger.error("%s", hang)
        engine.kill()

    def _tell_workers(self, state: EngineState) -> None:
        self._state = state
        self._serving.clear()
        for worker in self._workers.values():
            worker.tell(state)

    # --- HTTP processes ---------------------------------------------------------------------------------------

    async def _keep_worker(self) -> None:
        """Starts HTTP processes, one after the other, until the server stops."""
        num_failures = 0
        while not self._stopping.is_set():
            number = next(self._numbers)
            listener = self._listener.fileno()
            worker = await Child.start(
                "sgjax_server.processes.http_process",
                LaunchHttp(self._config, self._folder, number, listener, self._started_s),
                pass_fds=(listener,),
                env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": self._folder},
            )
            self._workers[number] = worker
            worker.tell(self._logging)
            worker.tell(self._state)
            if self._stopping.is_set():
                worker.tell(Drain())
            has_served = await self._follow_worker(number, worker)
            why = await worker.ended()
            del self._workers[number]
            self._serving.discard(number)
            if self._stopping.is_set():
                return
            num_failures = 1 if has_served else num_failures + 1
            if num_failures == MAX_FAILURES:
                self._stop(1)
                return
            _logger.error("HTTP process %d has ended (%s); starting another", number, why)
            self._forget_worker(number, worker.pid)

    async def _follow_worker(self, number: int, worker: Child) -> bool:
        """Acts on a worker's reports, until they end. Whether it served any engine."""
        has_served = False
        while line := await worker.reports.readline():
            match decode_from_http(line):
                case Serving(generation):
                    has_served = True
                    self._note_serving(number, generation)
                case Logging() as change:
                    self._change_logging(change)
        return has_served

    def _note_serving(self, number: int, generation: int) -> None:
        if generation == self._state.generation and self._state.info is not None:
            self._serving.add(number)
            if len(self._serving) == self._config.http_workers and self._on_ready is not None:
                self._on_ready(self._state.info)
                self._on_ready = None

    def _change_logging(self, change: Logging) -> None:
        self._logging = Logging(change.log_requests, change.log_level or self._logging.log_level)
        if change.log_level is not None:
            set_log_level(change.log_level)
        for child in self._children():
            child.tell(self._logging)

    def _forget_worker(self, number: int, pid: int) -> None:
        """What a process that died leaves to the others: its requests have ended, and it answers nothing any more."""
        from prometheus_client.multiprocess import mark_process_dead  # a server starts sooner without it

        if self._engine is not None:
            self._engine.tell(WorkerLost(number))
        mark_process_dead(pid, self._folder)
        try:
            forget_worker(self._database, number)
        except sqlite3.Error:  # the disk is full; that must not keep another process from starting
            _logger.exception("what HTTP process %d was generating could not be ended", number)


class EngineLife:
    """What is known of one engine process.

    Attributes:
      why: what ended it, where it did not just die. rejected: it said that no other try would end better.
    """

    def __init__(self, timeout_s: float):
        self.was_ready = False
        self.rejected = False
        self.why = ""
        self._timeout_s = timeout_s
        self._heard_s = time.monotonic()
        self._beat: Beat | None = None

    def note(self, report: Loading | Ready | Beat | Weights | Rejected | Fault) -> None:
        self._heard_s = time.monotonic()
        match report:
            case Ready():
                self.was_ready = True
            case Rejected(message):
                self.rejected, self.why = True, message
            case Fault(message):
                self.why = message
            case Beat():
                self._beat = report

    def hang(self) -> str | None:
        """What to say of a process that does nothing any more; None while it is well."""
        silence_s = time.monotonic() - self._heard_s
        step = None if self._beat is None else self._beat.step
        if silence_s > self._timeout_s:
            return f"the engine process has said nothing for {silence_s:.0f} s{_at(step)}"
        if step is not None and step.seconds > self._timeout_s:
            return f"a step has hung for {step.seconds:.0f} s{_at(step)}"
        return None


def _at(step: StepReport | None) -> str:
    if step is None:
        return ""
    tokens, rows, pages = step.shape
    rids = ", ".join(step.rids)
    return f", in a {step.kind} step of {tokens} tokens x {rows} rows x {pages} pages with the requests {rids}"
