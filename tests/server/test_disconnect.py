"""A client that goes takes its requests with it. Over real sockets, on a fake engine."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from .fakes import FakeEngine


async def _aborted(engine: FakeEngine, count: int) -> list[str]:
    async with asyncio.timeout(5):
        while len(engine.aborted) < count:
            await asyncio.sleep(0.01)
    return sorted(engine.aborted)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
async def test_leaving_a_stream(url: str, engine: FakeEngine, path: str):
    engine.stuck = True
    body = {"text": "a"} if path == "/generate" else {"prompt": "a"}
    body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else body
    async with httpx.AsyncClient() as client:
        async with client.stream("POST", url + path, json={**body, "rid": "r", "stream": True}) as response:
            assert await anext(response.aiter_lines())
            assert engine.aborted == []
        assert await _aborted(engine, 1) == ["r"]
        engine.stuck = False
        assert (await client.post(url + path, json=body)).status_code == 200


async def test_leaving_before_the_answer(url: str, engine: FakeEngine):
    engine.stuck = True
    async with httpx.AsyncClient(timeout=0.3) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url + "/generate", json={"text": ["a", "b"], "rid": "r"})
    assert await _aborted(engine, 2) == ["r_0", "r_1"]


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_a_grammar_compiles(url: str, engine: FakeEngine, stream: bool):
    engine.compiling = True
    body = {"prompt": ["a", "b"], "regex": "a", "rid": "r", "stream": stream}
    async with httpx.AsyncClient(timeout=0.3) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url + "/v1/completions", json=body)
    assert await _aborted(engine, 2) == ["r_0", "r_1"]


async def test_leaving_a_stream_of_a_batch(url: str, engine: FakeEngine):
    engine.stuck = True
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", url + "/v1/completions", json={"prompt": ["a", "b"], "stream": True}) as response,
    ):
        assert await anext(response.aiter_lines())
    assert len(await _aborted(engine, 2)) == 2


async def test_neighbours_go_on(url: str, engine: FakeEngine):
    """A malformed request and one whose client leaves do not touch the one beside them."""
    async with httpx.AsyncClient() as client:
        good = asyncio.create_task(client.post(url + "/v1/completions", json={"prompt": "a" * 50}))
        bad = await client.post(url + "/v1/completions", json={"prompt": "a", "top_p": 7})
        assert bad.status_code == 400
        assert (await good).json()["choices"][0]["text"] == "Hello world"


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
async def test_leaving_other_apis(url: str, engine: FakeEngine, path: str):
    engine.stuck = True
    body = {"max_tokens": 9} if path == "/v1/messages" else {}
    body |= {"messages": [{"role": "user", "content": "a"}], "stream": True}
    async with httpx.AsyncClient() as client, client.stream("POST", url + path, json=body) as response:
        assert await anext(response.aiter_lines())
        assert engine.aborted == []
    assert await _aborted(engine, 1) == [request.rid for request in engine.submitted]
