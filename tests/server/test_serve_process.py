"""`sgjax serve` and `sgjax generate` as processes of their own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


@pytest.fixture(scope="module")
def flags(embedded_model_path: Path) -> list[str]:
    small = "--context-length 512 --max-total-tokens 2048 --max-running-requests 4 --skip-warmup"
    return ["--model-path", str(embedded_model_path), *small.split()]


@contextlib.contextmanager
def _sgjax(*args: str, **options) -> Iterator[subprocess.Popen]:
    """The command as a process, which is killed when the test fails before it ends."""
    command = [sys.executable, "-m", "sgjax_server", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_serve_until_told_to_stop(flags: list[str]):
    with _sgjax("serve", "--port", "0", *flags) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split(" at ")[1].split()[0]
        assert f"curl {url}/v1/chat/completions" in line
        answer = httpx.post(url + "/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=120)
        assert answer.json()["usage"]["completion_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="SIGINT is ignored here, as under nohup")
def test_stopping_while_it_loads(flags: list[str]):
    with _sgjax("serve", "--port", "0", *flags) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "starting jax\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in err


def test_a_model_that_is_not_there():
    with _sgjax("serve", "--port", "0", "--model-path", "/no/such/model") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("sgjax: /no/such/model: ")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with _sgjax("serve", "--port", str(port)) as process:
            _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in err


def test_generate_from_standard_input(flags: list[str]):
    lines = ['{"id": "a", "prompt": "x", "max_new_tokens": 2, "ignore_eos": true}', "{"]
    with _sgjax("generate", "--jsonl", *flags, stdin=subprocess.PIPE) as process:
        out, _ = process.communicate("\n".join(lines), timeout=120)
    first, second = map(json.loads, out.splitlines())
    assert (first["id"], first["completion_tokens"]) == ("a", 2)
    assert second["error"]["field"] == "line"
    assert process.returncode == 1
