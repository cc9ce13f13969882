"""Responses that are kept: read, listed, gone on from, cancelled, deleted, forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest
from sgjax_server.config import ServerConfig
from sgjax_server.database import create_database, forget_worker, open_database
from sgjax_server.errors import ApiError
from sgjax_server.responses.store import ResponseStore, StoredResponse

from ..conftest import client_of
from ..fakes import FakeEngine
from .test_create import URL, prompt

GONE = "the HTTP process that generated the response has ended"


async def _create(client: httpx.AsyncClient, **fields) -> dict:
    response = await client.post(URL, json={"input": "hi", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def _aborted(engine: FakeEngine) -> list[str]:
    """What has been aborted, as soon as there is something."""
    async with asyncio.timeout(5):
        while not engine.aborted:
            await asyncio.sleep(0)
    return engine.aborted


async def _ended(client: httpx.AsyncClient, id: str) -> dict:
    async with asyncio.timeout(5):
        while (response := (await client.get(f"{URL}/{id}")).json())["status"] == "in_progress":
            await asyncio.sleep(0)
    return response


@pytest.mark.parametrize("stream", [False, True])
async def test_get_and_go_on(client, engine: FakeEngine, stream: bool):
    if stream:
        await client.post(URL, json={"input": "hi", "instructions": "Be brief.", "stream": True})
        first = {"id": engine.submitted[0].rid}
    else:
        first = await _create(client, instructions="Be brief.")
        assert (await client.get(f"{URL}/{first['id']}")).json() == first
    second = await _create(client, input="more", previous_response_id=first["id"])
    assert prompt(engine) == "user:hi|assistant:Hello world|user:more|assistant:"
    assert second["previous_response_id"] == first["id"]
    await _create(client, input="and", instructions="New.", previous_response_id=second["id"])
    said = "user:hi|assistant:Hello world|user:more|assistant:Hello world|user:and|assistant:"
    assert prompt(engine) == f"system:New.|{said}"


async def test_not_stored(client):
    response = await _create(client, store=False)
    assert response["store"] is False
    assert (await client.get(f"{URL}/{response['id']}")).status_code == 404


async def test_delete(client):
    response = await _create(client)
    deleted = (await client.delete(f"{URL}/{response['id']}")).json()
    assert deleted == {"id": response["id"], "object": "response", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        gone = await client.request(method, f"{URL}/{response['id']}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "response_not_found")
    lost = await client.post(URL, json={"input": "hi", "previous_response_id": response["id"]})
    assert (lost.status_code, lost.json()["error"]["param"]) == (404, "previous_response_id")


async def test_input_items(url: str):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        given = [{"role": "user", "content": str(number)} for number in range(5)]
        response = await api.responses.create(model="m", input=given)  # type: ignore[arg-type]
        newest = await api.responses.input_items.list(response.id, limit=2)
        assert [item.content[0].text for item in newest.data] == ["4", "3"]  # type: ignore[union-attr]
        assert newest.has_more
        pages = [item async for item in api.responses.input_items.list(response.id, limit=2, order="asc")]
        assert [item.content[0].text for item in pages] == list("01234")  # type: ignore[union-attr]
        assert len({item.id for item in pages}) == 5
        with pytest.raises(openai.BadRequestError):
            await api.responses.input_items.list(response.id, after="x")


async def test_background(url: str, engine: FakeEngine):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        response = await api.responses.create(model="m", input="hi", background=True)
        assert (response.status, response.background, response.output) == ("in_progress", True, [])
        async with asyncio.timeout(5):
            while response.status == "in_progress":
                response = await api.responses.retrieve(response.id)
        assert (response.status, response.output_text) == ("completed", "Hello world")
        assert (await api.responses.cancel(response.id)).status == "completed"
    assert engine.aborted == []


async def test_background_is_cancelled(client, engine: FakeEngine):
    engine.stuck = True
    response = await _create(client, background=True)
    early = await client.post(URL, json={"input": "b", "previous_response_id": response["id"]})
    assert "has not ended" in early.json()["error"]["message"]
    for _ in range(2):
        cancelled = (await client.post(f"{URL}/{response['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
    assert await _aborted(engine) == [engine.submitted[0].rid]
    assert (await client.get(f"{URL}/{response['id']}")).json()["status"] == "cancelled"


async def test_background_is_deleted(client, engine: FakeEngine):
    engine.stuck = True
    response = await _create(client, background=True)
    await client.delete(f"{URL}/{response['id']}")
    assert await _aborted(engine) == [engine.submitted[0].rid]
    assert (await client.get(f"{URL}/{response['id']}")).status_code == 404


async def test_background_fails(client, engine: FakeEngine):
    engine.error = ValueError("secret")
    response = await _ended(client, (await _create(client, background=True))["id"])
    assert response["status"] == "failed"
    assert "secret" not in response["error"]["message"]


async def test_background_has_a_time_limit(engine: FakeEngine):
    engine.stuck = True
    async with client_of(engine, ServerConfig(request_timeout_s=1.0)) as client:
        response = await _ended(client, (await _create(client, background=True))["id"])
    assert response["status"] == "failed"
    assert await _aborted(engine) == [engine.submitted[0].rid]


async def test_only_background_is_cancelled(client):
    response = await _create(client)
    refused = await client.post(f"{URL}/{response['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_background")


async def test_stored_responses_are_not_streamed(client):
    response = await _create(client)
    refused = await client.get(f"{URL}/{response['id']}", params={"stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


async def test_number_is_bounded(engine: FakeEngine):
    async with client_of(engine, ServerConfig(max_stored_responses=2)) as client:
        first, second = await _create(client), await _create(client)
        await client.get(f"{URL}/{first['id']}")
        await _create(client)
        assert (await client.get(f"{URL}/{second['id']}")).status_code == 404
        assert (await client.get(f"{URL}/{first['id']}")).status_code == 200


async def test_size_is_bounded(engine: FakeEngine):
    async with client_of(engine, ServerConfig(max_stored_response_bytes=6000)) as client:
        first = await _create(client)
        assert (await client.get(f"{URL}/{first['id']}")).status_code == 200
        second = await _create(client, metadata={"note": "x" * 4000})
        assert (await client.get(f"{URL}/{first['id']}")).status_code == 404
        assert (await client.get(f"{URL}/{second['id']}")).status_code == 200


async def test_what_is_generated_is_not_forgotten(engine: FakeEngine):
    engine.stuck = True
    async with client_of(engine, ServerConfig(max_stored_responses=1)) as client:
        running = [await _create(client, background=True) for _ in range(2)]
        for response in running:
            assert (await client.post(f"{URL}/{response['id']}/cancel")).json()["status"] == "cancelled"


def _stores(folder: Path) -> list[ResponseStore]:
    """Of two processes."""
    return [ResponseStore(open_database(str(folder)), worker, max_responses=9, max_bytes=10_000) for worker in (0, 1)]


def _response(id: str, **fields) -> StoredResponse:
    return StoredResponse({"id": id, "status": "in_progress", "error": None}, [{"type": "message"}], **fields)


def test_several_processes_know_the_same_responses(tmp_path: Path):
    create_database(str(tmp_path)).close()
    mine, others = _stores(tmp_path)
    others.put(_response("a", is_running=True))
    assert mine.get("a").is_running
    ended = {"id": "a", "status": "cancelled"}
    assert mine.end("a", ended)
    assert not others.end("a", {"id": "a", "status": "completed"})  # it has been cancelled meanwhile
    assert others.get("a") == StoredResponse(ended, [{"type": "message"}])
    assert not mine.delete("a")
    with pytest.raises(ApiError, match="no response 'a'"):
        others.get("a")


def test_what_a_dead_process_was_generating_has_failed(tmp_path: Path):
    database = create_database(str(tmp_path))
    dead, alive = _stores(tmp_path)
    dead.put(_response("a", is_running=True))
    dead.put(_response("b"))
    alive.put(_response("c", is_running=True))
    forget_worker(database, 0)
    failed = alive.get("a")
    assert not failed.is_running
    assert failed.body["status"] == "failed"
    assert failed.body["error"] == {"code": "server_error", "message": GONE}
    assert alive.get("b").body["error"] is None
    assert alive.get("c").is_running
