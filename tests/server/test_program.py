"""`/run_program` over real HTTP on a tiny engine: answers, events, limits, failures, clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.local_engine import LocalEngine
from sgjax_server.programs import budget, pool
from sgjax_server.programs.run import ProgramRun
from sgjax_server.schemas.program import ProgramRequest

import sgjax
import sgjax as sgl
from sgjax.lang.program_json import encode_program

from ..engine.conftest import tiny_model as tiny_model
from ..engine.conftest import tiny_settings as tiny_settings
from ..serving import served_app

GREEDY = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 4}
LONG = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 400}


@pytest.fixture(scope="module")
def engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def app(engine: sgjax.Engine):
    return create_app(EngineHost(LocalEngine(engine)), ServerConfig(max_running_programs=2))


@pytest.fixture(scope="module")
def client(app) -> Iterator[httpx.Client]:
    with served_app(app) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_leaks(engine: sgjax.Engine, app) -> Iterator[None]:
    """After every test no program and no request is at work, and every page is accounted for."""
    yield
    deadline = time.monotonic() + 20
    while app.state.programs.num_running or (stats := engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline, "something lives on"
        time.sleep(0.01)
    engine.check()


def body(function, sampling: dict[str, Any] = GREEDY, **fields: Any) -> dict[str, Any]:
    program = encode_program(sgl.function(function).trace(needs_all=True))
    return {"program": program, "sampling": sampling, **fields}


def story(s, topic):
    s += sgl.user(f"About {topic}") + sgl.assistant(sgl.gen("story"))
    branches = s.fork(2)
    branches += lambda i: f" {i}" + sgl.gen("ending")
    branches.join()
    s += sgl.select("choice", choices=["one", "two"])
    return s["choice"]


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    datas = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


def stream(client: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", "/run_program", json={**request, "stream": True}) as response:
        assert response.status_code == 200
        return events_of(response)


def test_the_server_says_that_it_runs_programs(client: httpx.Client):
    assert client.get("/model_info").json()["programs"] == 1


def test_answer(client: httpx.Client):
    answer = client.post("/run_program", json=body(story, arguments={"topic": "owls"}, rid="mine")).json()
    assert answer.keys() == {"id", "result", "text", "messages", "variables", "meta_info", "usage"}
    assert answer["id"] == "mine"
    assert answer["result"] == answer["variables"]["choice"]
    assert [message["role"] for message in answer["messages"]] == ["user", "assistant"]
    assert answer["messages"][1]["content"] == answer["variables"]["story"]
    assert len(answer["variables"]["ending"]) == 2
    assert answer["meta_info"]["story"]["completion_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["num_requests"] == 5  # three generations, a choice, and the text that the fork shares


@pytest.mark.parametrize("deltas", [True, False])
def test_events(client: httpx.Client, deltas: bool):
    request = body(story, arguments={"topic": "owls"}, deltas=deltas)
    first, *events, last = stream(client, request)
    assert (first["type"], last["type"]) == ("start", "end")
    fork = next(event for event in events if event["type"] == "fork")
    assert fork == {"type": "fork", "state": 0, "at": "program.ops[1]", "children": [1, 2]}
    whole = {(event["state"], event["name"]): event["value"] for event in events if event["type"] == "value"}
    assert whole.keys() == {(0, "story"), (1, "ending"), (2, "ending"), (0, "ending"), (0, "choice")}
    assert whole[0, "ending"] == [whole[1, "ending"], whole[2, "ending"]] == last["variables"]["ending"]
    texts: dict[tuple[int, str], str] = {}
    for event in events:
        if event["type"] == "delta":
            key = event["state"], event["name"]
            texts[key] = texts.get(key, "") + event["text"]
    generated = {key: value for key, value in whole.items() if key in ((0, "story"), (1, "ending"), (2, "ending"))}
    assert texts == (generated if deltas else {})
    told = "".join(event["text"] for event in events if event["type"] == "text")
    assert told == (last["text"] if deltas else "")


def test_branches_in_a_loop_are_told_apart(client: httpx.Client):
    def loop(s):
        s += "a"

        def once(s):
            s.fork(1)[0].append(sgl.gen("x"))

        s.repeat(3, once)

    events = stream(client, body(loop))
    assert [event["children"] for event in events if event["type"] == "fork"] == [[1], [2], [3]]
    assert {event["state"] for event in events if event["type"] == "value"} == {1, 2, 3}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"program": None}, "program"),
        ({"program": {"version": 1, "ops": [{"kind": "exec"}]}}, "program.ops[0].kind"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"temperatur": 1}}, "sampling.temperatur"),
        ({"arguments": {}}, "arguments.topic"),
        ({"arguments": {"topic": "a", "more": 1}}, "arguments.more"),
        ({"arguments": [1]}, "arguments"),
        ({"arguments": []}, "arguments"),
        ({"chat_format": "mine"}, "chat_format"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_bad_request_is_refused_with_its_path(client: httpx.Client, change: dict[str, Any], param: str):
    response = client.post("/run_program", json={**body(story, arguments={"topic": "a"}), "stream": True, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# --- failures ---------------------------------------------------------------------------------------------------------


def too_long(s):
    s += "a"
    branches = s.fork(2)
    branches[0] += sgl.gen("good")
    branches[1] += "b" + sgl.gen("bad", max_tokens=5000)
    branches.join()
    s += sgl.gen("never")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failing_generation(client: httpx.Client, engine: sgjax.Engine, is_stream: bool):
    request = body(too_long, LONG)
    if is_stream:
        error = stream(client, request)[-1]["error"]
    else:
        response = client.post("/run_program", json=request)
        assert response.status_code == 400
        error = response.json()["error"]
    assert (error["param"], error["variable"], error["state"]) == ("program.ops[3].expr[1]", "bad", 2)
    assert error["code"] == "program_failed"
    assert "max_new_tokens" in error["message"]


def repeated(s):
    s += "a"

    def double(s):
        s.set_var("x", s.text() + s.text())
        s += s["x"]

    s.repeat(40, double)


def many_steps(s):
    s += "a"
    s.repeat(1000, lambda s: s.repeat(1000, lambda s: s.set_var("x", "b")))


def many_states(s):
    s += "a"
    s.repeat(1000, lambda s: s.fork(1))


def many_tokens(s):
    s += "a" + sgl.gen("x", n=1000, max_tokens=400) + sgl.gen("y", n=1000, max_tokens=400)


def bad_times(s, times):
    s += "a"
    s.repeat(times, lambda s: s.append("b"))


def no_such_item(s):
    s += "a" + sgl.gen("x")
    s += s["x"][99]


@pytest.mark.parametrize(
    ("function", "arguments", "param", "message"),
    [
        (repeated, {}, "program.ops[1].body[0]", "characters"),
        (many_steps, {}, "program.ops[1].body[0].body[0]", "operations"),
        (many_states, {}, "program.ops[1].body[0]", "states"),
        (bad_times, {"times": 10**6}, "program.ops[1]", "times must lie in"),
        (bad_times, {"times": "nine"}, "program.ops[1]", "ValueError"),
        (no_such_item, {}, "program.ops[1]", "IndexError"),
    ],
)
def test_what_is_too_much_or_wrong(client: httpx.Client, function, arguments: dict, param: str, message: str):
    response = client.post("/run_program", json=body(function, arguments=arguments))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_tokens_are_limited(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "MAX_TOKENS", 10)

    def program(s):
        s += "a" + sgl.gen("x", max_tokens=8) + sgl.gen("y", max_tokens=2) + sgl.gen("z", max_tokens=1)

    error = client.post("/run_program", json=body(program)).json()["error"]
    assert (error["variable"], error["param"]) == ("z", "program.ops[0].expr[3]")
    assert "tokens" in error["message"]


def test_a_late_program_is_ended(client: httpx.Client):
    def program(s):
        s += "a"
        s.repeat(1000, lambda s: s.append(sgl.gen("x")))

    response = client.post("/run_program", json=body(program, timeout_s=0.2))
    assert response.status_code == 504
    assert "longer than 0.2 s" in response.json()["error"]["message"]


# --- many, and leaving ------------------------------------------------------------------------------------------------


def endless(s):
    s += "a"
    branches = s.fork(3)
    branches += sgl.gen("x") + sgl.gen("y")
    branches.join()


def test_leaving_a_stream(client: httpx.Client, engine: sgjax.Engine, app):
    with client.stream("POST", "/run_program", json={**body(endless, LONG), "stream": True}) as response:
        lines = (line for line in response.iter_lines() if line)
        while json.loads(next(lines).removeprefix("data: "))["type"] != "delta":
            pass
        assert engine.stats().num_running
    before = engine.stats().counters.num_aborted
    _until_free(app)
    assert engine.stats().num_running == 0
    assert engine.stats().counters.num_aborted > before


async def test_closing_a_run_frees_its_pages_at_once(engine: sgjax.Engine):
    ended = threading.Event()
    run = ProgramRun(engine, ProgramRequest(**body(endless, LONG), stream=True).call(), ended.set)
    async for event in run.events():
        if event["type"] == "delta":
            break
    steps = engine.stats().counters.decode_steps
    run.close()
    assert await asyncio.to_thread(ended.wait, 10)
    stats = engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.counters.decode_steps - steps <= 3


def test_aborting_a_program_by_its_id(client: httpx.Client, engine: sgjax.Engine):
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.post, "/run_program", json=body(endless, LONG, rid="mine"))
        while engine.stats().num_running < 3:
            assert not asked.done()
        engine.abort_requests("min")  # somebody else's
        assert not asked.done()
        engine.abort_requests("mine")
        response = asked.result()
    assert response.status_code == 409
    assert "the request was aborted" in response.json()["error"]["message"]


def test_leaving_before_the_answer(client: httpx.Client, engine: sgjax.Engine, app):
    with pytest.raises(httpx.ReadTimeout):
        client.post("/run_program", json=body(endless, LONG), timeout=0.3)
    _until_free(app)


def test_too_many_programs(client: httpx.Client, app):
    request = {**body(endless, LONG), "stream": True}
    with (
        client.stream("POST", "/run_program", json=request) as first,
        client.stream("POST", "/run_program", json=request) as second,
    ):
        assert (first.status_code, second.status_code) == (200, 200)
        refused = client.post("/run_program", json=request)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["code"] == "too_many_programs"
        # Others are served all the while.
        assert client.post("/generate", json={"text": "a", "sampling_params": GREEDY}).status_code == 200
    _until_free(app)
    assert client.post("/run_program", json=body(story, arguments={"topic": "a"})).status_code == 200


def _until_free(app) -> None:
    programs: pool.ProgramPool = app.state.programs
    deadline = time.monotonic() + 10
    while programs.num_running:
        assert time.monotonic() < deadline, "a program lives on"
        time.sleep(0.005)


def test_a_full_queue_is_waited_for(engine: sgjax.Engine, client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    """Where a single request would be refused, a program waits until there is room."""
    monkeypatch.setattr(engine._loop._live, "_max_queued", 1)
    response = client.post("/run_program", json=body(endless))
    assert response.status_code == 200
    assert len(response.json()["variables"]["y"]) == 3
