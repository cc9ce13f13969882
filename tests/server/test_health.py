from __future__ import annotations

from .fakes import FakeEngine


async def test_ready(client):
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_failed_engine(client, engine: FakeEngine):
    engine.is_alive, engine.failure = False, RuntimeError("out of memory")
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "failed", "message": "out of memory"})


async def test_openapi_page_has_the_routes(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/health", "/generate", "/v1/models", "/v1/completions", "/v1/chat/completions"} <= paths.keys()
    assert {"/model_info", "/server_info", "/flush_cache"} <= paths.keys()
