"""The page for Prometheus, with and without an engine."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.routes import metrics

from .conftest import client_of
from .fakes import FakeEngine


async def read(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Samples by name and, of requests, method, route and status."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    return {
        (
            sample.name.removeprefix("sgjax:"),
            *sample.labels.values(),
        ): sample.value
        for sample in samples
    }


async def test_requests_by_route_and_status(client, engine: FakeEngine):
    for body in ({"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}, {"prompt": "a", "stream": True}):
        await client.post("/v1/completions", json=body)
    await client.get("/v1/models/default")
    await client.get("/v1/models/other")
    await client.get("/nowhere/1")
    engine.error = ZeroDivisionError()
    await client.post("/generate", json={"text": "a"})
    values = await read(client)
    counted = {labels[1:]: value for labels, value in values.items() if labels[0] == "http_requests_total"}
    assert counted == {
        ("POST", "/v1/completions", "200"): 3,
        ("POST", "/v1/completions", "400"): 1,
        ("GET", "/v1/models/{model:path}", "200"): 1,
        ("GET", "/v1/models/{model:path}", "404"): 1,
        ("GET", "none", "404"): 1,
        ("POST", "/generate", "500"): 1,
    }
    assert values["engine_up",] == 1
    assert values["num_running_reqs", "fake"] == 0
    assert values["http_open_requests",] == 1  # this one
    assert values["http_open_streams",] == 0


async def test_open_streams(client, engine: FakeEngine):
    """A stream counts from its first piece until its client has gone."""
    engine.stuck = True
    stream = asyncio.create_task(client.post("/generate", json={"text": "a", "stream": True}))
    while not (values := await read(client)).get(("http_open_streams",)):
        await asyncio.sleep(0)
    assert values["http_open_requests",] == 2
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)
    values = await read(client)
    assert (values["http_open_streams",], values["http_open_requests",]) == (0, 1)


async def test_without_an_engine():
    transport = httpx.ASGITransport(create_app(EngineHost(), ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        values = await read(client)
    assert values["engine_up",] == values["engine_restarts_total",] == 0
    assert not any(labels[0] == "num_running_reqs" for labels in values)


async def test_with_an_engine_that_has_failed(client, engine: FakeEngine):
    engine.failure = RuntimeError("out of memory")
    assert (await read(client))["engine_up",] == 0
    engine.is_alive = False
    assert (await read(client))["engine_up",] == 0


async def test_with_an_engine_that_does_not_answer(client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "ENGINE_TIMEOUT_S", 0.01)
    engine.hung = True
    assert (await read(client))["engine_up",] == 0


async def test_a_key_is_needed_where_there_is_one(engine: FakeEngine):
    transport = httpx.ASGITransport(create_app(EngineHost(engine), ServerConfig(api_key="key")))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/metrics")).status_code == 401
        client.headers["Authorization"] = "Bearer key"
        values = await read(client)
    assert values["http_requests_total", "GET", "none", "401"] == 1


async def test_the_model_is_called_as_clients_call_it(engine: FakeEngine):
    async with client_of(engine, ServerConfig(served_model_name="mine")) as client:
        assert ("num_running_reqs", "mine") in await read(client)
