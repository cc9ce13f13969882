"""An application over a fake engine, and a client that speaks to it without a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from ..serving import served_app
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
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test")


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    """The URL of a real server over a fake engine, for clients that bring their own HTTP."""
    with served_app(create_app(EngineHost(engine), ServerConfig())) as url:  # type: ignore[arg-type]
        yield url
    assert engine.closed


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a finished stream, whose last line must be `[DONE]`."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    datas = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]
