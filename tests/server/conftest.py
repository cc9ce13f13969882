"""Applications over a fake engine and over the embedded model, and clients of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

import sgjax

from ..serving import served, served_app
from .fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine):
    async with client_of(engine) as client:
        yield client


def client_of(engine: FakeEngine, config: ServerConfig | None = None) -> httpx.AsyncClient:
    """A client of an application with its own settings."""
    app = create_app(EngineHost(engine), config or ServerConfig())  # type: ignore[arg-type]
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
    )


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    """The URL of a real server over a fake engine, for clients that bring their own HTTP."""
    with served_app(create_app(EngineHost(engine), ServerConfig())) as url:  # type: ignore[arg-type]
        yield url
    assert engine.closed


@pytest.fixture(scope="session")
def embedded_engine(embedded_model_path: Path) -> Iterator[sgjax.Engine]:
    """The embedded model, for all tests that serve it in this process."""
    with sgjax.Engine(
        str(embedded_model_path),
        dtype="float32",  # in bfloat16 the first token is nearly a tie
        context_length=1024,
        max_running_requests=8,
        max_total_tokens=4096,
        chunked_prefill_size=128,
        skip_warmup=True,
    ) as engine:
        yield engine


@pytest.fixture(scope="session")
def embedded_url(embedded_engine: sgjax.Engine) -> Iterator[str]:
    """The URL of a server over it."""
    with served(embedded_engine) as url:
        yield url


@pytest.fixture
def nothing_leaks(embedded_engine: sgjax.Engine) -> Iterator[None]:
    """After the test nothing runs any more, and every page is accounted for."""
    yield
    deadline = time.monotonic() + 10
    while (stats := embedded_engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline, "a request lives on"
        time.sleep(0.02)
    embedded_engine.check()


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a finished stream, whose last line must be `[DONE]`."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    datas = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]
