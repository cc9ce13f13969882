"""A server process for measurements: started, waited for, stopped."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Client, LoadError

START_TIMEOUT_S = 900.0
# The whole process at rest for this long has nothing left to compile.
IDLE_SHARE, IDLE_S = 0.05, 3.0


class ServerProcess:
    """`sgjax serve` on a free port, as a context manager.

    Attributes:
      first_answer_s: from the start of the process to the end of its first answer.
    """

    def __init__(self, args: Sequence[str], log: Path):
        self._args = list(args)
        self._log = log

    def __enter__(self) -> ServerProcess:
        port = _free_port()
        self.client = Client(base_url=f"http://127.0.0.1:{port}")
        command = [sys.executable, "-m", "sgjax_server", "serve", "--port", str(port), *self._args]
        start = time.perf_counter()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            asyncio.run(self._first_answer())
        except BaseException:
            self._stop()
            raise
        self.first_answer_s = time.perf_counter() - start
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def _first_answer(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while await self.client.status("/health") != 200:
            if self._process.poll() is not None:
                raise LoadError(f"the server ended with status {self._process.returncode}; see {self._log}")
            if time.monotonic() > deadline:
                raise LoadError(f"the server is not ready after {START_TIMEOUT_S:.0f} s; see {self._log}")
            await asyncio.sleep(0.05)
        await self.client.complete(range(1000, 1016), max_tokens=8)

    def wait_until_idle(self) -> float:
        """Waits for the end of work in the background, such as compiling; returns the seconds waited."""
        start = time.monotonic()
        while True:
            cpu, since = self.cpu_s(), time.monotonic()
            time.sleep(IDLE_S)
            if self.cpu_s() - cpu < IDLE_SHARE * (time.monotonic() - since):
                return time.monotonic() - start - IDLE_S
            if since - start > START_TIMEOUT_S:
                raise LoadError(f"the server is still busy after {START_TIMEOUT_S:.0f} s without requests")

    def cpu_s(self, kind: str = "sgjax_server") -> float:
        """Processor time so far of the server's processes whose command line has `kind` in it (Linux)."""
        root = self._process.pid
        pids = [str(root), *Path(f"/proc/{root}/task/{root}/children").read_text().split()]
        return sum(_cpu_s(pid) for pid in pids if kind in Path(f"/proc/{pid}/cmdline").read_text())

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _cpu_s(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
