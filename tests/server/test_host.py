"""The server's life before and after the engine is there."""

from __future__ import annotations

import threading

import httpx
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from .fakes import FakeEngine


def _client(host: EngineHost) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(host, ServerConfig()))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_loading_then_ready():
    may_finish, reported = threading.Event(), []
    host = EngineHost()

    def load(report):
        report("loading weights", 0.25)
        may_finish.wait(5)
        return FakeEngine()

    host.start(load, lambda *progress: reported.append(progress))
    async with _client(host) as client:
        while not reported:
            pass
        response = await client.get("/health")
        assert (response.status_code, response.json()["stage"], response.json()["progress"]) == (
            503,
            "loading weights",
            0.25,
        )
        response = await client.post("/v1/completions", json={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
        assert response.headers["retry-after"]
        may_finish.set()
        host.loaded.result(5)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_load_failure_is_reported():
    host = EngineHost()

    def load(report):
        raise ValueError("model.safetensors: truncated")

    host.start(load, lambda *progress: None)
    assert host.loaded.exception(5) is not None
    async with _client(host) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()) == (
            503,
            {"status": "failed", "message": "model.safetensors: truncated"},
        )
    host.close()


async def test_served_model_name():
    config = ServerConfig(served_model_name="my-model")
    transport = httpx.ASGITransport(create_app(EngineHost(FakeEngine()), config))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "my-model"
        assert (await client.post("/v1/completions", json={"prompt": "a"})).json()["model"] == "my-model"
