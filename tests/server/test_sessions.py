"""SGLang's sessions: what a request's prompt is made of, and when a session is forgotten."""

from __future__ import annotations

import time

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.errors import ApiError
from sgjax_server.host import EngineHost
from sgjax_server.sessions import Continuation, Session, SessionStore

from sgjax.types import RequestError

from .conftest import events_of
from .fakes import BOS, EOS, FakeEngine

OUTPUT = b"Hello world" + bytes([EOS])


async def _open(client, **fields) -> str:
    response = await client.post("/open_session", json={"capacity_of_str_len": 1000, **fields})
    assert response.status_code == 200
    return response.json()


async def _generate(client, engine: FakeEngine, text: str, new_rid: str, **session_params) -> bytes:
    """The prompt that the engine got."""
    body = {"text": text, "rid": new_rid, "session_params": session_params}
    response = await client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return bytes(engine.submitted[-1].input_ids)


async def test_requests_append(client, engine: FakeEngine):
    id = await _open(client)
    assert await _generate(client, engine, "a", "1", id=id) == b"a"
    assert await _generate(client, engine, "b", "2", id=id, rid="1") == b"a" + OUTPUT + b"b"
    assert await _generate(client, engine, "c", "3", id=id, rid="2") == b"a" + OUTPUT + b"b" + OUTPUT + b"c"
    # A branch, and a beginning of its own in the same session.
    assert await _generate(client, engine, "d", "4", id=id, rid="1") == b"a" + OUTPUT + b"d"
    assert await _generate(client, engine, "e", "5", id=id) == b"e"


async def test_streams_append_too(client, engine: FakeEngine):
    id = await _open(client)
    body = {"text": "a", "rid": "1", "stream": True, "session_params": {"id": id}}
    events_of(await client.post("/generate", json=body))
    assert await _generate(client, engine, "b", "2", id=id, rid="1") == b"a" + OUTPUT + b"b"


async def test_offset_and_dropped_output(client, engine: FakeEngine):
    id = await _open(client)
    await _generate(client, engine, "abc", "1", id=id)
    assert await _generate(client, engine, "x", "2", id=id, rid="1", offset=2) == b"abx"
    assert await _generate(client, engine, "x", "3", id=id, rid="1", offset=-1) == b"abcHello worldx"
    assert await _generate(client, engine, "x", "4", id=id, rid="1", offset=0) == b"abc" + OUTPUT + b"x"
    assert await _generate(client, engine, "x", "5", id=id, rid="1", drop_previous_output=True) == b"abcx"


async def test_the_beginning_of_a_text_is_there_once(client, engine: FakeEngine):
    id = await _open(client)
    body = {"input_ids": [BOS, 97], "rid": "1", "session_params": {"id": id}}
    await client.post("/generate", json=body)
    await client.post("/generate", json={**body, "rid": "2", "session_params": {"id": id, "rid": "1"}})
    assert bytes(engine.submitted[-1].input_ids) == bytes([BOS]) + b"a" + OUTPUT + b"a"


async def test_replace_forgets_what_came_after(client, engine: FakeEngine):
    id = await _open(client)
    await _generate(client, engine, "a", "1", id=id)
    await _generate(client, engine, "b", "2", id=id, rid="1")
    await _generate(client, engine, "c", "3", id=id, rid="2")
    assert await _generate(client, engine, "B", "4", id=id, rid="1", replace=True) == b"a" + OUTPUT + b"B"
    for rid in ("2", "3"):
        response = await client.post("/generate", json={"text": "x", "session_params": {"id": id, "rid": rid}})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "session_params")
    assert await _generate(client, engine, "z", "5", id=id, replace=True) == b"z"
    response = await client.post("/generate", json={"text": "x", "session_params": {"id": id, "rid": "4"}})
    assert response.status_code == 400


def test_replace_aborts_what_runs():
    session = Session("s", is_linear=False, idle_s=1, max_tokens=100)
    aborted: list[str] = []
    session.begin("1", Continuation(), [1], aborted.append).close()
    session.begin("2", Continuation(rid="1"), [1, 2], aborted.append)
    session.begin("3", Continuation(rid="1"), [1, 3], aborted.append).close()
    with pytest.raises(RequestError, match="has not ended"):
        session.prompt(Continuation(rid="2"), [5], None)
    session.begin("4", Continuation(rid="1", replace=True), [1, 4], aborted.append)
    assert aborted == ["2"]
    session.begin("5", Continuation(rid="4", replace=True), [1, 4, 5], aborted.append)
    assert aborted == ["2", "4"]
    assert session.is_running


def test_output_of_what_was_replaced_is_not_kept():
    session = Session("s", is_linear=False, idle_s=1, max_tokens=100)
    turn = session.begin("1", Continuation(), [1], lambda rid: None)
    turn.output_ids = [7, 8]
    session.begin("2", Continuation(replace=True), [2], lambda rid: None).close()
    turn.close()
    assert session.num_tokens == 1
    with pytest.raises(RequestError, match="no request '1'"):
        session.prompt(Continuation(rid="1"), [], None)


async def test_client_that_goes_leaves_what_it_has(url: str, engine: FakeEngine):
    engine.stuck = True
    async with httpx.AsyncClient(base_url=url) as client:
        id = await _open(client)
        body = {"text": "a", "rid": "1", "stream": True, "session_params": {"id": id}}
        async with client.stream("POST", "/generate", json=body) as response:
            assert await anext(response.aiter_lines())
            unfinished = await client.post("/generate", json={"text": "b", "session_params": {"id": id, "rid": "1"}})
            assert "has not ended" in unfinished.json()["error"]["message"]
        while not engine.aborted:
            assert (await client.get("/health")).status_code == 200
        engine.stuck = False
        assert await _generate(client, engine, "b", "2", id=id, rid="1") == b"aHb"


async def test_streaming_session_appends_by_itself(client, engine: FakeEngine):
    id = await _open(client, streaming=True)
    assert await _generate(client, engine, "a", "1", id=id) == b"a"
    assert await _generate(client, engine, "b", "2", id=id) == b"a" + OUTPUT + b"b"
    assert await _generate(client, engine, "c", "3", id=id) == b"a" + OUTPUT + b"b" + OUTPUT + b"c"
    for params in ({"replace": True}, {"offset": 1}, {"drop_previous_output": True}):
        response = await client.post("/generate", json={"text": "x", "session_params": {"id": id, **params}})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "session_params")


def test_streaming_session_takes_one_request_at_a_time():
    session = Session("s", is_linear=True, idle_s=1, max_tokens=100)
    session.begin("1", Continuation(), [1], lambda rid: None)
    with pytest.raises(RequestError, match="not ended"):
        session.prompt(Continuation(), [1], None)


async def test_close(client):
    id = await _open(client, session_id="mine", timeout=None)
    assert id == "mine"
    taken = await client.post("/open_session", json={"session_id": "mine"})
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "session_id")
    assert (await client.post("/close_session", json={"session_id": id})).status_code == 200
    assert (await client.post("/close_session", json={"session_id": id})).status_code == 400
    gone = await client.post("/generate", json={"text": "a", "session_params": {"id": id}})
    assert (gone.status_code, gone.json()["error"]["param"]) == (400, "session_params")


@pytest.mark.parametrize("fields", [{"text": ["a", "b"]}, {"text": "a", "sampling_params": {"n": 2}}])
async def test_one_prompt_and_one_sample(client, engine: FakeEngine, fields: dict):
    id = await _open(client)
    response = await client.post("/generate", json={**fields, "session_params": {"id": id}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "session_params")
    assert engine.submitted == []


async def test_refused_request_is_not_of_the_session(client):
    id = await _open(client)
    params = {"max_new_tokens": 5000}
    body = {"text": "a", "rid": "1", "sampling_params": params, "session_params": {"id": id}}
    assert (await client.post("/generate", json=body)).status_code == 400
    response = await client.post("/generate", json={"text": "a", "session_params": {"id": id, "rid": "1"}})
    assert "no request '1'" in response.json()["error"]["message"]


async def test_settings_bound_the_store(engine: FakeEngine):
    config = ServerConfig(max_sessions=1, max_session_tokens=20)
    transport = httpx.ASGITransport(create_app(EngineHost(engine), config))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        first, second = await _open(client), await _open(client)
        assert (await client.post("/close_session", json={"session_id": first})).status_code == 400
        await _generate(client, engine, "ab", "1", id=second)
        full = await client.post("/generate", json={"text": "cd", "session_params": {"id": second, "rid": "1"}})
        assert "30 tokens of 20" in full.json()["error"]["message"]


def test_least_recently_used_is_forgotten():
    store = SessionStore(max_sessions=2, max_tokens=10, idle_s=60)
    for id in ("a", "b"):
        store.open(id, is_linear=False, idle_s=None)
    store.get("a")
    store.open("c", is_linear=False, idle_s=None)
    with pytest.raises(RequestError, match="'b' is not open here"):
        store.get("b")
    store.get("a").begin("1", Continuation(), [1] * 8, print).close()
    store.get("c").begin("2", Continuation(), [1] * 8, print)
    store.get("c")
    with pytest.raises(RequestError):
        store.get("a")


def test_sessions_at_work_are_kept():
    store = SessionStore(max_sessions=1, max_tokens=10, idle_s=60)
    store.open("a", is_linear=False, idle_s=None)
    turn = store.get("a").begin("1", Continuation(), [1], print)
    with pytest.raises(ApiError, match="1 sessions are at work") as refused:
        store.open("b", is_linear=False, idle_s=None)
    assert refused.value.status == 429
    turn.close()
    store.open("b", is_linear=False, idle_s=None)


def test_idle_sessions_are_forgotten(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = SessionStore(max_sessions=9, max_tokens=10, idle_s=60)
    store.open("a", is_linear=False, idle_s=None)
    store.open("b", is_linear=False, idle_s=120)
    now += 61
    with pytest.raises(RequestError):
        store.get("a")
    store.get("b")


def test_long_chains_have_no_depth_limit():
    session = Session("s", is_linear=False, idle_s=1, max_tokens=10_000)
    session.begin("0", Continuation(), [1], print).close()
    for number in range(1, 3000):
        session.begin(str(number), Continuation(rid=str(number - 1)), [1], print).close()
    session.begin("new", Continuation(rid="0", replace=True), [1], print).close()
    assert session.num_tokens == 2
