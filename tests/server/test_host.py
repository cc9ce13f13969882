"""The server's life before and after the engine is there."""

from __future__ import annotations

import httpx
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from .fakes import FakeEngine


def _client(host: EngineHost) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(host, ServerConfig()))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_loading_then_ready_then_restarting():
    host = EngineHost()
    host.set_loading("loading weights", 0.25)
    async with _client(host) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()["stage"], response.json()["progress"]) == (
            503,
            "loading weights",
            0.25,
        )
        response = await client.post("/v1/completions", json={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
        assert response.headers["retry-after"]
        engine = FakeEngine()
        host.set_ready(engine)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
        host.set_down("restarting", "the engine process has ended (killed by SIGKILL)")
        assert engine.closed
        response = await client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "restarting")
        response = await client.post("/v1/completions", json={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "restarting")
        assert "SIGKILL" in response.json()["error"]["message"]
        host.set_ready(FakeEngine())
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_failure_is_reported():
    host = EngineHost()
    host.set_down("failed", "model.safetensors: truncated")
    async with _client(host) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()) == (
            503,
            {"status": "failed", "message": "model.safetensors: truncated"},
        )
        response = await client.post("/v1/completions", json={"prompt": "a"})
        assert response.json()["error"]["code"] == "engine_failed"


async def test_served_model_name():
    config = ServerConfig(served_model_name="my-model")
    transport = httpx.ASGITransport(create_app(EngineHost(FakeEngine()), config))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "my-model"
        assert (await client.post("/v1/completions", json={"prompt": "a"})).json()["model"] == "my-model"
