"""SGLang's sessions: what a request's prompt is made of, and when a session is forgotten."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.database import create_database, forget_worker, open_database
from sgjax_server.errors import ApiError
from sgjax_server.host import EngineHost
from sgjax_server.sessions import Continuation, SessionStore

from sgjax.types import RequestError

from .conftest import events_of
from .fakes import BOS, EOS, FakeEngine

OUTPUT = b"Hello world" + bytes([EOS])


def _store(folder: str | None = None, worker: int = 0, **bounds) -> SessionStore:
    database = create_database(None) if folder is None else open_database(folder)
    return SessionStore(database, worker, **{"max_sessions": 9, "max_tokens": 100, "idle_s": 60, **bounds})


def _with_session(*, is_linear: bool = False, max_tokens: int = 100) -> SessionStore:
    """A store with the open session "s"."""
    store = _store(max_tokens=max_tokens)
    store.open("s", is_linear=is_linear, idle_s=None)
    return store


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
    store = _with_session()
    aborted: list[str] = []
    store.begin("s", "1", Continuation(), [1], aborted.append).close()
    store.begin("s", "2", Continuation(rid="1"), [1, 2], aborted.append)
    store.begin("s", "3", Continuation(rid="1"), [1, 3], aborted.append).close()
    with pytest.raises(RequestError, match="has not ended"):
        store.prompt("s", Continuation(rid="2"), [5], None)
    store.begin("s", "4", Continuation(rid="1", replace=True), [1, 4], aborted.append)
    assert aborted == ["2"]
    store.begin("s", "5", Continuation(rid="4", replace=True), [1, 4, 5], aborted.append)
    assert aborted == ["2", "4"]


def test_output_of_what_was_replaced_is_not_kept():
    store = _with_session()
    turn = store.begin("s", "1", Continuation(), [1], print)
    turn.output_ids = [7, 8]
    store.begin("s", "2", Continuation(replace=True), [2], print).close()
    turn.close()
    assert store.num_tokens("s") == 1
    with pytest.raises(RequestError, match="no request '1'"):
        store.prompt("s", Continuation(rid="1"), [], None)


def test_an_id_that_comes_again_takes_the_place_of_the_first():
    store = _with_session()
    first = store.begin("s", "1", Continuation(), [1], print)
    store.begin("s", "1", Continuation(), [2, 3], print).close()
    first.output_ids = [7]
    first.close()
    assert store.prompt("s", Continuation(rid="1"), [], None) == [2, 3]


def test_several_processes_know_the_same_sessions(tmp_path: Path):
    create_database(str(tmp_path)).close()
    mine, others = _store(str(tmp_path), worker=0), _store(str(tmp_path), worker=1)
    others.open("s", is_linear=False, idle_s=None)
    with pytest.raises(RequestError, match="open already"):
        mine.open("s", is_linear=False, idle_s=None)
    turn = others.begin("s", "1", Continuation(), [1], print)
    with pytest.raises(RequestError, match="has not ended"):
        mine.prompt("s", Continuation(rid="1"), [2], None)
    turn.output_ids = [7]
    turn.close()
    assert mine.prompt("s", Continuation(rid="1"), [2], None) == [1, 7, 2]


def test_what_a_dead_process_was_at_never_was(tmp_path: Path):
    database = create_database(str(tmp_path))
    dead, alive = _store(str(tmp_path), worker=0), _store(str(tmp_path), worker=1)
    dead.open("s", is_linear=False, idle_s=None)
    dead.begin("s", "1", Continuation(), [1], print).close()
    dead.begin("s", "2", Continuation(rid="1"), [1, 2], print)
    kept = alive.begin("s", "3", Continuation(rid="2", replace=True), [1, 3], print)
    forget_worker(database, 0)
    kept.output_ids = [7]
    kept.close()
    assert alive.prompt("s", Continuation(rid="1"), [], None) == [1]
    assert alive.prompt("s", Continuation(rid="3"), [], None) == [1, 3, 7]
    with pytest.raises(RequestError, match="no request '2'"):
        alive.prompt("s", Continuation(rid="2"), [], None)
    assert alive.num_tokens("s") == 4


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
    store = _with_session(is_linear=True)
    store.begin("s", "1", Continuation(), [1], print)
    for call in (
        lambda: store.prompt("s", Continuation(), [1], None),
        lambda: store.begin("s", "2", Continuation(), [1], print),
    ):
        with pytest.raises(RequestError, match="not ended"):
            call()


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


def _is_open(store: SessionStore, id: str) -> bool:
    with contextlib.suppress(RequestError):
        store.prompt(id, Continuation(), [1], None)
        return True
    return False


def test_least_recently_used_is_forgotten():
    store = _store(max_sessions=2, max_tokens=10)
    for id in ("a", "b"):
        store.open(id, is_linear=False, idle_s=None)
    assert _is_open(store, "a")
    store.open("c", is_linear=False, idle_s=None)
    assert not _is_open(store, "b")
    store.begin("a", "1", Continuation(), [1] * 8, print).close()
    store.begin("c", "2", Continuation(), [1] * 8, print)
    assert _is_open(store, "c")
    assert not _is_open(store, "a")


def test_sessions_at_work_are_kept():
    store = _store(max_sessions=1)
    store.open("a", is_linear=False, idle_s=None)
    turn = store.begin("a", "1", Continuation(), [1], print)
    with pytest.raises(ApiError, match="1 sessions are at work") as refused:
        store.open("b", is_linear=False, idle_s=None)
    assert refused.value.status == 429
    turn.close()
    store.open("b", is_linear=False, idle_s=None)


def test_idle_sessions_are_forgotten(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = _store()
    store.open("a", is_linear=False, idle_s=None)
    store.open("b", is_linear=False, idle_s=120)
    now += 61
    assert not _is_open(store, "a")
    assert _is_open(store, "b")


def test_long_chains_have_no_depth_limit():
    store = _with_session(max_tokens=10_000)
    store.begin("s", "0", Continuation(), [1], print).close()
    for number in range(1, 3000):
        store.begin("s", str(number), Continuation(rid=str(number - 1)), [1], print).close()
    store.begin("s", "new", Continuation(rid="0", replace=True), [1], print).close()
    assert store.num_tokens("s") == 2
