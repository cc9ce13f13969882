"""An HTTP process: the application over an engine that lives elsewhere, and may be replaced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from sgjax.text import Tokenizer, load_tokenizer
from sgjax_server.app import create_app
from sgjax_server.database import open_database
from sgjax_server.host import EngineHost
from sgjax_server.logs import set_log_level, set_up_logging
from sgjax_server.processes.client import EngineClient
from sgjax_server.processes.lines import (
    Drain,
    EngineState,
    LaunchHttp,
    Logging,
    ReportPipe,
    Serving,
    decode_launch_http,
    decode_to_http,
)
from sgjax_server.shared import Shared
from sgjax_server.web import uvicorn_options


class _Server(uvicorn.Server):
    """Leaves signals to the supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpProcess:
    """Serves until the supervisor says otherwise."""

    def __init__(self, launch: LaunchHttp, reports: ReportPipe):
        self._launch = launch
        self._reports = reports
        self._host = EngineHost()
        self._is_told_to_end = False
        self._engine: EngineClient | None = None
        self._tokenizer: tuple[str, Tokenizer] | None = None
        shared = Shared(
            worker=launch.worker,
            database=open_database(launch.folder),
            metrics_folder=launch.folder,
            announce_logging=lambda detail, level: reports.send(Logging(detail, level)),
            started_s=launch.started_s,
        )
        self._app: FastAPI = create_app(self._host, launch.config, shared)
        self._server = _Server(uvicorn_options(launch.config, self._app))

    async def run(self) -> None:
        obeying = asyncio.create_task(self._obey_supervisor())
        obeying.add_done_callback(self._stop)
        await self._server.serve(sockets=[socket.socket(fileno=self._launch.listener)])
        obeying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await obeying
        if not self._is_told_to_end:  # the supervisor has died, and with it who would remove what clients have said
            shutil.rmtree(self._launch.folder, ignore_errors=True)

    def _stop(self, _: asyncio.Task) -> None:
        self._server.should_exit = True
        self._app.state.live.close()
        asyncio.get_running_loop().call_later(self._launch.config.drain_timeout, self._give_up)

    def _give_up(self) -> None:
        """Ends what draining did not get done, with an error that says so."""
        if self._engine is not None:
            self._engine.fail(f"the server is stopping, and waits no longer than {self._launch.config.drain_timeout} s")

    async def _obey_supervisor(self) -> None:
        """Follows the supervisor's lines, until one says stop or they end."""
        reader = asyncio.StreamReader(limit=2**24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            match decode_to_http(line):
                case Drain():
                    self._is_told_to_end = True
                    return
                case Logging(detail, level):
                    self._app.state.request_log.detail = detail
                    if level is not None:
                        set_log_level(level)
                case EngineState() as state:
                    await self._follow(state)

    async def _follow(self, state: EngineState) -> None:
        num_ended = state.generation + (state.status == "restarting")
        self._app.state.http_metrics.num_engine_restarts = num_ended
        if state.status == "ready":
            await self._connect(state)
            return
        if self._engine is not None:
            self._engine.fail(state.message)
            self._engine = None
        if state.status == "loading":
            self._host.set_loading(state.message, state.progress)
        else:
            self._host.set_down(state.status, state.message)

    async def _connect(self, state: EngineState) -> None:
        info = state.info
        assert info is not None
        if self._tokenizer is None or self._tokenizer[0] != info.tokenizer_source:
            tokenizer = await asyncio.to_thread(
                load_tokenizer,
                Path(info.tokenizer_source),
                chat_template=info.config.chat_template,
                eos_token_ids=info.eos_token_ids,
            )
            self._tokenizer = info.tokenizer_source, tokenizer
        self._engine = EngineClient(
            info,
            self._tokenizer[1],
            folder=self._launch.folder,
            generation=state.generation,
            worker=self._launch.worker,
        )
        self._host.set_ready(self._engine)
        gc.collect()
        gc.freeze()  # the modules, schemas and vocabulary stay: each full collection would go through them for 50 ms
        self._reports.send(Serving(state.generation))


def _first_line() -> bytes:
    """Of standard input, without reading on: the lines after it are the event loop's."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
        return stdin.readline()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor says what follows
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reports = ReportPipe()
    launch = decode_launch_http(_first_line())
    set_up_logging(launch.config.log_level, launch.config.log_format)
    asyncio.run(HttpProcess(launch, reports).run(), loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    main()
