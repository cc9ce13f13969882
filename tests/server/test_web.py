"""The transport: TLS, and clients that are slow with their requests. Over real sockets, on a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.web import uvicorn_options
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgjax.config import ConfigError

from .fakes import FakeEngine


@contextlib.asynccontextmanager
async def _serving(
    engine: FakeEngine, around: Callable[[ASGIApp], ASGIApp] = lambda app: app, **settings
) -> AsyncIterator[int]:
    """The port of a server."""
    config = ServerConfig(**settings)
    app = create_app(EngineHost(engine), config)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn_options(config, around(app), port=0, timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def _answer(port: int, *parts: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(5):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


HEAD = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = b'{"text": "a"}'
REFUSED_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
WHOLE = HEAD + b"Content-Length: 13\r\n\r\n" + BODY


@pytest.mark.parametrize("begun", [b"", b"POST /gen", HEAD])
async def test_a_head_that_does_not_arrive(engine: FakeEngine, begun: bytes):
    async with _serving(engine, request_body_timeout_s=0.5) as port:
        await _answer(port, WHOLE, b"G")  # the first request to an application may take longer than that
        assert await _answer(port, begun) == b""
        kept_alive = await _answer(port, WHOLE, begun or b"G")
        assert b"Hello world" in kept_alive
        assert kept_alive.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_after_a_second_request_was_sent(engine: FakeEngine, stream: bool):
    engine.stuck = True
    body = json.dumps({"text": "a", "rid": "first", "stream": stream}).encode()
    async with _serving(engine) as port, asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) + WHOLE)
        while not engine.submitted:
            await asyncio.sleep(0.01)
        writer.close()
        while engine.aborted != ["first"]:
            await asyncio.sleep(0.01)
    assert len(engine.submitted) == 1


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\nd\r\n" + BODY + b"\r\n0\r\n"


@pytest.mark.parametrize("begun", [HEAD, WHOLE + HEAD, CHUNKED], ids=["head", "next head", "trailers"])
async def test_a_header_without_end(engine: FakeEngine, begun: bytes):
    async with _serving(engine) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun + b"X: ")
        with pytest.raises(ConnectionError):  # noqa: PT012
            async with asyncio.timeout(5):
                while True:
                    writer.write(b"a" * 0x10000)
                    await writer.drain()
        writer.close()


async def test_a_head_that_is_too_long(engine: FakeEngine):
    async with _serving(engine) as port:
        longest = HEAD + b"Connection: close\r\nX: " + b"a" * 60_000
        assert await _answer(port, longest + b"a" * 6000) == REFUSED_HEAD
        assert b"Hello world" in await _answer(port, longest, b"\r\nContent-Length: 13\r\n\r\n" + BODY)


async def test_a_head_in_time(engine: FakeEngine):
    async with _serving(engine, request_body_timeout_s=0.5) as port:
        engine.stuck = True  # the time is for the request alone, not for its answer
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WHOLE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read()
        writer.close()


async def test_a_body_that_does_not_arrive(engine: FakeEngine):
    async with _serving(engine, request_body_timeout_s=0.1) as port:
        answer = await _answer(port, HEAD + b"Content-Length: 13\r\n\r\n" + BODY[:5])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert engine.submitted == []


async def test_a_body_that_is_announced_as_too_long(engine: FakeEngine):
    async with _serving(engine, max_request_bytes=100_000) as port:
        answer = await _answer(port, HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_without_end(engine: FakeEngine):
    """The answer comes before the body is through, and the connection ends with it."""
    async with _serving(engine, max_request_bytes=100_000) as port:
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        answer = await _answer(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", piece, piece)
        assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost in a folder, its key as it is and locked with a password."""
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    lock = "openssl rsa -aes256 -in key.pem -out locked.pem -passout pass:secret"
    try:
        for command in (new + " -keyout key.pem -out cert.pem", lock):
            subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return folder


@pytest.mark.parametrize(("key", "password"), [("key.pem", None), ("locked.pem", "secret")])
async def test_tls(engine: FakeEngine, certificate: Path, key: str, password: str | None):
    files = {"ssl_certfile": str(certificate / "cert.pem"), "ssl_keyfile": str(certificate / key)}
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with (
        _serving(engine, **files, ssl_keyfile_password=password) as port,
        httpx.AsyncClient(verify=trust) as client,
    ):
        answer = await client.post(f"https://localhost:{port}/generate", json={"text": "a"})
        assert answer.json()["text"] == "Hello world"
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://localhost:{port}/health")


def test_a_key_that_cannot_be_used(certificate: Path):
    with pytest.raises(ConfigError, match="ssl_certfile: certificate and key cannot be used"):
        ServerConfig(ssl_certfile=str(certificate / "cert.pem"), ssl_keyfile=str(certificate / "locked.pem"))


@pytest.mark.parametrize(("log_requests", "sees_all"), [("off", False), ("metadata", False), ("full", True)])
async def test_pieces_of_a_stream_pass_by_middleware_that_does_not_read_them(
    engine: FakeEngine, log_requests: str, sees_all: bool
):
    seen: list[Message] = []

    def watched(app: ASGIApp) -> ASGIApp:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            async def watch(message: Message) -> None:
                if scope["type"] == "http":
                    seen.append(message)
                await send(message)

            await app(scope, receive, watch)

        return layer

    async with _serving(engine, watched, log_requests=log_requests) as port, httpx.AsyncClient() as client:
        body = {"text": "a", "stream": True}
        answer = (await client.post(f"http://127.0.0.1:{port}/generate", json=body)).text
    events = answer.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["text"] == "Hello world"
    assert len(events) > 4
    pieces = [message["body"] for message in seen if message["type"] == "http.response.body"]
    if sees_all:
        assert b"".join(pieces).decode() == answer
    else:
        assert pieces == [f"{events[0]}\n\n".encode(), b"data: [DONE]\n\n"]
