"""What a server refuses or ends under load: a full queue, tokens in flight, late requests, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.web import uvicorn_options

from sgjax.config import ConfigError, EngineConfig
from sgjax.engine.outputs import RequestHandle
from sgjax.types import FinishReason, OutputDelta, Receipt, Request

from .fakes import FakeEngine

CHAT = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
CALLS = {
    "/generate": {"text": "hi", "sampling_params": {"max_new_tokens": 16}},
    "/v1/completions": {"prompt": "hi", "max_tokens": 16},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hi", "max_output_tokens": 16},
    "/v1/messages": CHAT,
    "/api/chat": {"model": "m", "messages": CHAT["messages"], "options": {"num_predict": 16}},
    "/api/generate": {"model": "m", "prompt": "hi", "options": {"num_predict": 16}},
}


def _app(engine: FakeEngine, **settings) -> FastAPI:
    return create_app(EngineHost(engine), ServerConfig(**settings))  # type: ignore[arg-type]


def _client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def _error(path: str, answer: dict) -> str:
    """The message of an error, which must have the shape of the path's API."""
    if path.startswith("/api/"):
        return answer["error"]
    assert answer.get("type") == ("error" if path.startswith("/v1/messages") else None)
    return answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", CALLS)
async def test_full_queue(engine: FakeEngine, path: str, stream: bool):
    engine.queue_full = True
    async with _client(_app(engine)) as client:
        response = await client.post(path, json={**CALLS[path], "stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "queue" in _error(path, response.json())


async def test_more_tokens_than_can_ever_be_in_flight(engine: FakeEngine):
    """In one request, or in a call of several: the engine, which sees them one by one, might take some of them."""
    config = EngineConfig(context_length=1024, max_tokens_in_flight=50)
    engine.info = dataclasses.replace(engine.info, config=config)
    async with _client(_app(engine)) as client:
        for body in ({"prompt": "hi", "max_tokens": 49}, {"prompt": ["hi", "ho"], "max_tokens": 24}):
            response = await client.post("/v1/completions", json=body)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")
        assert engine.submitted == []
        assert (await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 48})).status_code == 200


@pytest.mark.parametrize("path", CALLS)
async def test_time_is_up(engine: FakeEngine, path: str):
    engine.stuck = True
    async with _client(_app(engine, request_timeout_s=1.0)) as client:
        response = await client.post(path, json={**CALLS[path], "stream": False})
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
    assert "longer" in _error(path, response.json())
    assert engine.aborted == [request.rid for request in engine.submitted]


async def test_openais_client_does_not_send_a_late_request_again(engine: FakeEngine):
    engine.stuck = True
    async with _client(_app(engine, request_timeout_s=0.2)) as client:
        api = openai.AsyncOpenAI(base_url="http://test/v1", api_key="-", max_retries=2, http_client=client)  # type: ignore[arg-type]
        with pytest.raises(openai.InternalServerError, match="longer"):
            await api.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("path", CALLS)
async def test_time_of_a_stream_is_up(engine: FakeEngine, path: str):
    engine.stuck = True
    async with _client(_app(engine, request_timeout_s=2.0)) as client:
        response = await client.post(path, json={**CALLS[path], "stream": True})
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if line]
    if path not in ("/v1/messages", "/v1/responses", "/api/chat", "/api/generate"):
        assert lines.pop() == "data: [DONE]"
    last = json.loads(lines[-1].removeprefix("data: "))
    assert "longer" in (last["message"] if path == "/v1/responses" else _error(path, last))
    assert engine.aborted == [request.rid for request in engine.submitted]


async def test_time_is_enough(engine: FakeEngine):
    async with _client(_app(engine, request_timeout_s=60)) as client:
        for path, body in CALLS.items():
            for stream in (False, True):
                response = await client.post(path, json={**body, "stream": stream})
                assert "longer" not in response.text


@pytest.mark.parametrize("name", ["request_timeout_s", "request_body_timeout_s", "max_running_programs"])
def test_limits_that_mean_nothing(name: str):
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**{name: 0})


class _PushingEngine(FakeEngine):
    """An engine that does not wait for its readers: as with the real one, deltas pile up in the request's handle."""

    NUM_TOKENS = 4000
    PIECE = "x" * 1000

    def __init__(self) -> None:
        super().__init__()
        self.has_ended = asyncio.Event()

    def submit(self, request: Request) -> RequestHandle:  # type: ignore[override]
        handle = RequestHandle(request, asyncio.get_running_loop())
        handle.start()
        self._pushing = asyncio.create_task(self._push(request, handle))
        return handle

    async def _push(self, request: Request, handle: RequestHandle) -> None:
        for _ in range(self.NUM_TOKENS - 1):
            handle.put(OutputDelta(request.rid, 0, self.PIECE, [120]))
            await asyncio.sleep(0)
        receipt = Receipt(prompt_tokens=1, completion_tokens=self.NUM_TOKENS)
        last = OutputDelta(request.rid, 0, self.PIECE, [120], finish=FinishReason("length"), receipt=receipt)
        handle.put(last)
        self.has_ended.set()


@contextlib.asynccontextmanager
async def _slow_stream(app: FastAPI) -> AsyncIterator[socket.socket]:
    """A connection that has asked for a stream, and takes next to nothing until somebody reads it."""
    server = uvicorn.Server(uvicorn_options(app.state.config, app, port=0, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.servers[0].sockets[0].getsockname()[1]))
        client.sendall(_post("/v1/completions", {"prompt": "a", "stream": True}))
        yield client
    server.should_exit = True
    await serving


async def test_a_slow_reader_gets_fewer_and_larger_pieces():
    """What it lags behind waits as one merged delta, beside what the socket has taken, and not as one event a token."""
    engine = _PushingEngine()
    async with _slow_stream(_app(engine)) as client, asyncio.timeout(30):
        await engine.has_ended.wait()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        reader, writer = await asyncio.open_connection(sock=client, limit=2**24)
        received = await reader.read()
        writer.close()
    events = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
    texts = [json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == engine.PIECE * engine.NUM_TOKENS
    assert len(events) < engine.NUM_TOKENS * 0.75
    assert max(map(len, texts)) > len("".join(texts)) / 4  # all that came while the socket was full


async def test_who_reads_nothing_holds_nothing_when_time_is_up():
    app = _app(_PushingEngine(), request_timeout_s=1)
    async with _slow_stream(app), _client(app) as client, asyncio.timeout(30):
        for num_streams in (1, 0):
            while f"sgjax:http_open_streams {num_streams}.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)


def _post(path: str, body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = ["Host: a", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *head, "", ""]).encode() + content
