"""SGLang's routes that control the server, on a fake engine."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from sgjax.types import RequestError

from .fakes import FakeEngine


async def test_abort_one(client, engine: FakeEngine):
    response = await client.post("/abort_request", json={"rid": "r", "abort_message": None})
    assert (response.status_code, response.content) == (200, b"")
    assert engine.controls == [("abort_requests", "r")]


async def test_abort_all(client, engine: FakeEngine):
    assert (await client.post("/abort_request", json={"abort_all": True, "rid": ""})).status_code == 200
    assert engine.controls == [("abort_requests", None)]


@pytest.mark.parametrize("body", [None, {}, {"mode": "abort"}, {"mode": "in_place"}, {"mode": "retract"}])
async def test_pause_and_continue(client, engine: FakeEngine, body: dict | None):
    paused = await client.post("/pause_generation", json=body)
    assert (paused.status_code, paused.json()["status"]) == (200, "ok")
    continued = await client.post("/continue_generation", json=None if body is None else {"torch_empty_cache": True})
    assert (continued.status_code, continued.json()["status"]) == (200, "ok")
    assert engine.controls == [("pause", (body or {}).get("mode", "abort")), ("resume",)]


class TestWeights:
    URL = "/update_weights_from_disk"

    async def test_update(self, client, engine: FakeEngine):
        body = {"model_path": "/new", "load_format": None, "flush_cache": True, "token_step": 7, "is_async": True}
        answer = await client.post(self.URL, json=body)
        assert answer.status_code == 200
        assert (answer.json()["success"], answer.json()["num_paused_requests"]) == (True, 0)
        assert "/new" in answer.json()["message"]
        assert engine.controls == [("update_weights", "/new", None)]

    async def test_version_is_reported_everywhere(self, client):
        assert (await client.get("/get_weight_version")).json() == {"weight_version": "default"}
        answer = await client.post(self.URL, json={"model_path": "/new", "weight_version": "step 7"})
        assert answer.json()["weight_version"] == "step 7"
        assert (await client.get("/get_weight_version")).json() == {"weight_version": "step 7"}
        assert (await client.get("/model_info")).json()["weight_version"] == "step 7"
        generated = (await client.post("/generate", json={"text": "a"})).json()
        assert generated["meta_info"]["weight_version"] == "step 7"

    async def test_checkpoint_that_does_not_fit(self, client, engine: FakeEngine):
        answer = await client.post(self.URL, json={"model_path": "missing", "keep_pause": True})
        assert (answer.status_code, answer.json()["success"]) == (400, False)
        assert "model_path: does not exist" in answer.json()["message"]
        assert not engine.is_paused

    async def test_requests_are_aborted_first(self, client, engine: FakeEngine):
        await client.post(self.URL, json={"model_path": "/new", "abort_all_requests": True})
        assert engine.controls == [("abort_requests", None), ("update_weights", "/new", None)]

    async def test_pause_is_kept(self, client, engine: FakeEngine):
        answer = (await client.post(self.URL, json={"model_path": "/new", "keep_pause": True})).json()
        assert engine.controls == [("pause", "retract"), ("update_weights", "/new", None)]
        assert engine.is_paused
        assert answer["num_paused_requests"] == 2  # those that wait


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_profile(client, engine: FakeEngine, method: str):
    started = (await client.request(method, "/start_profile")).json()
    assert started["success"] is True
    assert os.listdir(started["output_dir"]) == []
    os.rmdir(started["output_dir"])
    assert (await client.request(method, "/stop_profile")).json() == {"success": True}
    assert engine.controls == [("start_profile", started["output_dir"]), ("stop_profile",)]


async def test_refused_profile_leaves_no_folder(client, engine: FakeEngine, monkeypatch, tmp_path: Path):
    async def refuse(output_dir: str) -> None:
        raise RequestError("output_dir", "a trace is running")

    monkeypatch.setattr(engine, "start_profile", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert (await client.post("/start_profile")).status_code == 400
    assert os.listdir(tmp_path) == []


async def test_profile_as_sglangs_load_generator_asks(client, engine: FakeEngine, tmp_path: Path):
    body = {"activities": ["CPU", "GPU"], "num_steps": None, "profile_by_stage": False, "profile_stages": None}
    response = await client.post("/start_profile", json={**body, "output_dir": f"{tmp_path}/1", "profile_prefix": None})
    assert response.json() == {"success": True, "output_dir": f"{tmp_path}/1"}
    assert os.listdir(tmp_path) == ["1"]
    assert (await client.post("/stop_profile", json={})).status_code == 200
    assert engine.controls == [("start_profile", f"{tmp_path}/1"), ("stop_profile",)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/abort_request", {}, "rid"),
        ("/abort_request", {"rid": 5}, "rid"),
        ("/pause_generation", {"mode": "hibernate"}, "mode"),
        ("/update_weights_from_disk", {}, "model_path"),
        ("/update_weights_from_disk", {"model_path": "/new", "load_format": "dummy"}, "load_format"),
        ("/update_weights_from_disk", {"model_path": "/new", "flush_cache": False}, "flush_cache"),
        ("/update_weights_from_disk", {"model_path": "/new", "manifest": {"a": 1}}, "manifest"),
        ("/update_weights_from_disk", {"model_path": "\ud800"}, "model_path"),
        ("/start_profile", {"output_dir": "/dev/null/traces"}, "output_dir"),
        ("/start_profile", {"output_dir": "a\0b"}, "output_dir"),
        ("/start_profile", {"num_steps": 5}, "num_steps"),
        ("/start_profile", {"profile_by_stage": True}, "profile_by_stage"),
    ],
)
async def test_refused(client, engine: FakeEngine, path: str, body: dict, param: str):
    headers = {"Content-Type": "application/json"}
    response = await client.post(path, content=json.dumps(body), headers=headers)  # httpx refuses a lone surrogate
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert (engine.controls, engine.aborted) == ([], [])


async def test_load(client):
    body = (await client.get("/v1/loads")).json()
    (load,) = body["loads"]
    assert body["accelerator"] == "fake"
    assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (0, 3)
    assert load["queues"] == {"waiting": 2, "grammar": 1}
    assert (load["num_used_tokens"], load["max_total_num_tokens"]) == (16 * 16, 64 * 16)
    assert load["token_usage"] == 0.25
    (old,) = (await client.get("/get_load")).json()
    assert old == {"dp_rank": 0, "num_reqs": 3, "num_waiting_reqs": 3, "num_tokens": 256}


async def test_cache_hit_rate(client, engine: FakeEngine):
    assert (await client.get("/v1/loads")).json()["loads"][0]["cache_hit_rate"] == 0
    engine.counters.prompt_tokens, engine.counters.cached_tokens = 8, 2
    assert (await client.get("/v1/loads")).json()["loads"][0]["cache_hit_rate"] == 0.25


@pytest.mark.parametrize("path", ["/v1/embeddings", "/encode", "/v1/rerank", "/v1/classify", "/classify"])
async def test_models_that_are_not_served(client, path: str):
    response = await client.post(path, json={"model": "m", "input": "a"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "model_not_supported", "model")
    assert "fake generates text" in error["message"]


NOT_IMPLEMENTED = """
    /update_weights_from_tensor /update_weights_from_distributed /update_weights_from_ipc /init_weights_update_group
    /get_weights_by_name /load_lora_adapter /unload_lora_adapter /release_memory_occupation /resume_memory_occupation
"""


@pytest.mark.parametrize("path", NOT_IMPLEMENTED.split())
async def test_what_is_not_implemented_says_so(client, path: str):
    response = await client.post(path, json={})
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_implemented")
    assert response.headers["x-should-retry"] == "false"
