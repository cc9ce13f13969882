from __future__ import annotations

import asyncio
import functools

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from sgjax.types import Request

from .fakes import FakeEngine, FakeHandle

PATHS = ["/health", "/ready", "/ping", "/health_generate"]


@pytest.mark.parametrize("path", PATHS)
async def test_ready(client, path: str):
    response = await client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", PATHS)
async def test_dead_engine(client, engine: FakeEngine, path: str):
    engine.is_alive = False
    assert (await client.get(path)).status_code == 503


async def test_a_token_is_generated(client, engine: FakeEngine):
    await client.get("/health_generate")
    (request,) = engine.submitted
    assert (len(request.input_ids), request.sampling.max_new_tokens) == (1, 1)


@pytest.fixture
async def impatient(engine: FakeEngine):
    app = create_app(EngineHost(engine), ServerConfig(health_generate_timeout_s=0.2))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_no_token_comes(impatient, engine: FakeEngine):
    engine.silent = True
    response = await impatient.get("/health_generate")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_generating")
    assert engine.aborted == [engine.submitted[0].rid]


async def test_tokens_come_for_others(impatient, engine: FakeEngine, monkeypatch):
    def submit(request: Request) -> FakeHandle:
        engine.counters.generated_tokens += 1
        return FakeEngine.submit(engine, request)

    engine.silent = True
    monkeypatch.setattr(engine, "submit", submit)
    response = await impatient.get("/health_generate")
    assert (response.status_code, response.json()) == (200, {"status": "busy"})


async def test_full_queue_is_no_failure(client, engine: FakeEngine):
    engine.queue_full = True
    response = await client.get("/health_generate")
    assert (response.status_code, response.json()) == (200, {"status": "busy"})


async def test_hung_engine(impatient, engine: FakeEngine, monkeypatch):
    monkeypatch.setattr(engine, "stats", functools.partial(asyncio.sleep, 3600))
    assert (await impatient.get("/health_generate")).status_code == 503


async def test_failed_engine(client, engine: FakeEngine):
    engine.is_alive, engine.failure = False, RuntimeError("out of memory")
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "failed", "message": "out of memory"})


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/v1/models"])
async def test_head(client, path: str):
    asked, got = await client.head(path), await client.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers == got.headers
