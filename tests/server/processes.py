"""`sgjax serve` as processes of its own, for tests."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

LONG = {"prompt": "Rain", "max_tokens": 400, "ignore_eos": True, "stream": True, "temperature": 0}


class Server:
    """`sgjax serve` on a tiny model."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process = process
        self.url = url
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(process.stderr), daemon=True).start()  # type: ignore[arg-type]

    def pids(self, kind: str) -> list[int]:
        """The server's children of a kind: "engine_process" or "http_process"."""
        root = self.process.pid
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
        return [int(pid) for pid in children if kind in Path(f"/proc/{pid}/cmdline").read_text()]

    def health(self) -> dict:
        return httpx.get(self.url + "/health", timeout=10).json()

    def complete(self, **fields: object) -> httpx.Response:
        body = {"prompt": "a", "max_tokens": 2, "ignore_eos": True, **fields}
        return httpx.post(self.url + "/v1/completions", json=body, timeout=120)


def until(condition: Callable[[], bool], timeout_s: float = 120) -> float:
    """Waits for a condition; the seconds that it took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < timeout_s, "it has not come about"
        time.sleep(0.02)
    return time.monotonic() - started_s


def tiny_flags(tiny_model: Path, tokenizer: Path, compiled: Path) -> list[str]:
    """Of `sgjax serve`, for a tiny random model whose steps are compiled when they are first needed."""
    sizes = "--max-total-tokens 4096 --max-running-requests 4 --chunked-prefill-size 128"
    return [
        *("serve", "--port", "0", "--model-path", str(tiny_model), "--tokenizer-path", str(tokenizer)),
        *("--load-format", "dummy", "--skip-warmup", *sizes.split(), "--compile-cache-dir", str(compiled)),
    ]


@contextlib.contextmanager
def served(*flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "sgjax_server", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield Server(process, line.split(" at ")[1].split()[0])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()


@contextlib.contextmanager
def streaming(server: Server, **fields: object) -> Iterator[Iterator[str]]:
    """A stream whose first event has come; then the rest of its lines."""
    body = LONG | fields
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=120) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: {")
        yield lines


def stats(server: Server) -> dict:
    """The engine's state and totals."""
    return httpx.get(server.url + "/server_info", timeout=30).json()["internal_states"][0]
