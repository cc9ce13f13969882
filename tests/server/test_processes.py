"""A server's processes as an operator meets them: killed, hung, told to stop, more than one of a kind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..engine.conftest import tiny_model as tiny_model
from ..engine.conftest import write_checkpoint
from .processes import Server, served, stats, streaming, tiny_flags, until


@pytest.fixture(scope="module")
def flags(tiny_model: Path, embedded_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tiny_flags(tiny_model, embedded_model_path, tmp_path_factory.mktemp("compiled"))


def test_a_killed_engine_is_replaced_and_its_requests_hear_of_it(flags: list[str], tmp_path: Path):
    with served(*flags) as server:
        weights = {"model_path": write_checkpoint(tmp_path / "new", seed=1), "weight_version": "two"}
        assert httpx.post(server.url + "/update_weights_from_disk", json=weights, timeout=60).json()["success"]
        (engine,) = server.pids("engine_process")
        with streaming(server) as lines:
            os.kill(engine, signal.SIGKILL)
            *_, error, _ = lines
        assert until(lambda: server.health()["status"] != "ready") < 1
        error = json.loads(error.removeprefix("data: "))["error"]
        assert "SIGKILL" in error["message"]
        assert error["code"] == "engine_failed"
        refused = server.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "restarting")
        assert refused.headers["retry-after"]
        until(lambda: server.health()["status"] == "ready")
        assert server.complete().json()["usage"]["completion_tokens"] == 2
        assert stats(server)["weight_version"] == "two"  # not those that the first engine began with
        assert "\nsgjax:engine_restarts_total 1.0\n" in httpx.get(server.url + "/metrics").text
        assert server.pids("engine_process") != [engine]
        assert server.process.poll() is None


def test_a_hung_engine_is_reported_with_its_batch_and_replaced(flags: list[str]):
    with served(*flags, "--watchdog-timeout", "8") as server:
        with streaming(server) as lines:  # so that everything is compiled, which may take longer
            list(lines)
        (engine,) = server.pids("engine_process")
        with streaming(server, rid="the-one-at-work", n=64, max_tokens=None) as lines:
            time.sleep(1.0)  # so that a beat tells of the step
            os.kill(engine, signal.SIGSTOP)
            silent = httpx.get(server.url + "/v1/loads", timeout=30)
            assert (silent.status_code, silent.json()["error"]["code"]) == (503, "engine_silent")
            *_, error, _ = lines
        assert "has said nothing for" in json.loads(error.removeprefix("data: "))["error"]["message"]
        until(lambda: any("has said nothing for" in line for line in server.log))
        until(lambda: server.health()["status"] == "ready")
        assert server.complete().status_code == 200
        assert server.pids("engine_process") != [engine]
    (report,) = [line for line in server.log if "has said nothing for" in line and "killed" not in line][:1]
    assert re.search(r"decode step of \d+ tokens x \d+ rows x \d+ pages with the requests the-one-at-work", report)


def test_told_to_stop_it_finishes_what_is_at_work(flags: list[str]):
    with served(*flags) as server:
        with streaming(server, max_tokens=300) as lines:
            server.process.send_signal(signal.SIGTERM)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(30) == 0
    assert not any("Traceback" in line for line in server.log)


def test_what_takes_longer_than_draining_may_is_told_so(flags: list[str]):
    with served(*flags, "--drain-timeout", "1") as server, ThreadPoolExecutor() as threads:
        with streaming(server, n=64, max_tokens=None) as lines:
            whole = threads.submit(server.complete, n=64, max_tokens=400)
            until(lambda: stats(server)["num_running"] + stats(server)["num_waiting"] >= 100)
            server.process.send_signal(signal.SIGTERM)
            *_, error, _ = lines
        answer = whole.result(30)
        assert server.process.wait(30) == 0
    told = json.loads(error.removeprefix("data: ")), answer.json()
    assert ["the server is stopping" in one["error"]["message"] for one in told] == [True, True]
    assert answer.status_code == 503
    assert not any("Traceback" in line for line in server.log)


def test_a_second_signal_stops_at_once(flags: list[str]):
    with served(*flags, "--drain-timeout", "100") as server, streaming(server, max_tokens=None):
        children = server.pids("process")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("another signal" in line for line in server.log))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_killed_supervisor_takes_all_with_it(flags: list[str]):
    with served(*flags) as server:
        children = server.pids("process")
        assert len(children) == 2
        (http,) = server.pids("http_process")
        (folder,) = re.findall(r"PROMETHEUS_MULTIPROC_DIR=([^\0]+)", Path(f"/proc/{http}/environ").read_text())
        assert list(Path(folder).glob("*.sqlite"))
        server.process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 40)
        assert not Path(folder).exists()


@pytest.fixture(scope="module")
def pair(flags: list[str]) -> Iterator[Server]:
    """A server with two HTTP processes."""
    with served(*flags, "--http-workers", "2") as server:
        yield server


def test_several_http_processes(pair: Server):
    assert len(pair.pids("http_process")) == 2

    async def one(number: int) -> httpx.Response:
        async with httpx.AsyncClient(timeout=120) as client:  # a connection each, which either may take
            body = {"prompt": f"Rain {number}", "max_tokens": 20, "ignore_eos": True, "stop": "zzz"}
            return await client.post(pair.url + "/v1/completions", json=body)

    async def many() -> list[httpx.Response]:
        return await asyncio.gather(*map(one, range(24)))

    assert [answer.json()["usage"]["completion_tokens"] for answer in asyncio.run(many())] == [20] * 24
    with streaming(pair, rid="mine"):
        paused = httpx.post(pair.url + "/pause_generation", json={"mode": "in_place"}, timeout=60)
        assert paused.status_code == 200
        for _ in range(8):  # whichever process takes it, the id is in use
            assert pair.complete(rid="mine").json()["error"]["param"] == "rid"
    assert httpx.post(pair.url + "/continue_generation", timeout=60).status_code == 200


@contextlib.contextmanager
def _answered_by(server: Server, worker: int) -> Iterator[httpx.Client]:
    """A client that one HTTP process answers, since the others are held."""
    others = [pid for pid in server.pids("http_process") if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            yield client
    finally:
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _create_response(client: httpx.Client, **fields: object) -> dict:
    answer = client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _begin_response(client: httpx.Client) -> str:
    """The id of a response in the background, which does not end by itself."""
    assert client.post("/pause_generation").status_code == 200
    return _create_response(client, background=True)["id"]


def _num_opened(client: httpx.Client) -> float:
    """Sessions that clients of all processes opened, by the page for Prometheus."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "sgjax:http_requests_total"]
    return sum(sample.value for sample in samples if sample.labels["route"] == "/open_session")


def _has_nothing_at_work(server: Server) -> bool:
    state = stats(server)
    return state["num_running"] == state["num_waiting"] == 0


def _continue_session(client: httpx.Client, rid: str, after: str | None = None) -> dict:
    params = {"max_new_tokens": 4, "ignore_eos": True}
    body = {"input_ids": [4, 5, 6], "rid": rid, "sampling_params": params, "session_params": {"id": "s", "rid": after}}
    return client.post("/generate", json=body).json()


def test_an_http_process_goes_on_with_what_another_began(pair: Server):
    first, second = pair.pids("http_process")
    with _answered_by(pair, first) as client:
        assert client.post("/open_session", json={"session_id": "s"}).json() == "s"
        assert _continue_session(client, "1")["meta_info"]["prompt_tokens"] == 3
        kept, deleted = _create_response(client), _create_response(client)
        running = _begin_response(client)
        assert client.post("/configure_logging", json={"log_requests": "metadata"}).status_code == 200
    with _answered_by(pair, second) as client:
        assert client.get(f"/v1/responses/{running}").json()["status"] == "in_progress"
        assert client.post(f"/v1/responses/{running}/cancel").json()["status"] == "cancelled"
        until(lambda: _has_nothing_at_work(pair))
        assert client.post("/continue_generation").status_code == 200
        assert _continue_session(client, "2", after="1")["meta_info"]["prompt_tokens"] == 3 + 4 + 3
        assert client.get(f"/v1/responses/{kept['id']}").json() == kept
        assert _create_response(client, previous_response_id=kept["id"])["previous_response_id"] == kept["id"]
        assert client.delete(f"/v1/responses/{deleted['id']}").json()["deleted"]
        assert _num_opened(client) == 1
    until(lambda: any("POST /generate" in line for line in pair.log))
    with _answered_by(pair, first) as client:
        assert client.get(f"/v1/responses/{deleted['id']}").status_code == 404
        assert client.get(f"/v1/responses/{running}").json()["status"] == "cancelled"
        assert client.post("/configure_logging", json={"log_requests": "off"}).status_code == 200
        assert client.post("/close_session", json={"session_id": "s"}).status_code == 200


def test_a_killed_http_process_loses_only_what_it_was_at(pair: Server):
    lost, other = pair.pids("http_process")
    with _answered_by(pair, lost) as client:
        client.post("/open_session", json={"session_id": "s"})
        _continue_session(client, "1")
        kept = _create_response(client)
        running = _begin_response(client)
    with _answered_by(pair, other) as client:
        os.kill(lost, signal.SIGKILL)
        until(lambda: client.get(f"/v1/responses/{running}").json()["status"] == "failed")
        failed = client.get(f"/v1/responses/{running}").json()
        assert failed["error"]["message"] == "the HTTP process that generated the response has ended"
        until(lambda: _has_nothing_at_work(pair))
        assert client.post("/continue_generation").status_code == 200
        assert client.get(f"/v1/responses/{kept['id']}").json() == kept
        assert _continue_session(client, "2", after="1")["meta_info"]["prompt_tokens"] == 3 + 4 + 3
        assert _num_opened(client) == 2
    until(lambda: len(pair.pids("http_process")) == 2)


def test_a_client_that_goes_frees_its_pages(pair: Server):
    with streaming(pair, max_tokens=None):
        assert stats(pair)["num_running"] == 1
    until(lambda: stats(pair)["num_running"] == 0)
    state = stats(pair)
    cache = state["cache"]
    assert cache["num_free"] + cache["num_cached"] == cache["num_pages"]
    assert cache["num_locked"] == state["num_integrity_failures"] == 0


def test_a_lost_http_process_is_replaced_and_leaves_no_request_behind(pair: Server):
    workers = pair.pids("http_process")
    with contextlib.suppress(httpx.HTTPError), streaming(pair, max_tokens=None):
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    until(lambda: len(pair.pids("http_process")) == 2 and not set(workers) & set(pair.pids("http_process")))
    until(lambda: _serves(pair))
    assert pair.complete().status_code == 200


def _serves(server: Server) -> bool:
    """Whether both HTTP processes do, and nothing is at work."""
    with contextlib.suppress(httpx.HTTPError, KeyError):
        return all(stats(server)["num_running"] == 0 for _ in range(8))
    return False
