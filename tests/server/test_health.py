from __future__ import annotations

from .fakes import FakeEngine


async def test_ready(client):
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_failed_engine(client, engine: FakeEngine):
    engine.is_alive, engine.failure = False, RuntimeError("out of memory")
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "failed", "message": "out of memory"})
