"""What the server says of itself, and emptying its cache."""

from __future__ import annotations

import asyncio
import dataclasses
import functools

import pytest
from sgjax_server.config import ServerConfig
from sgjax_server.routes import context

import sgjax
from sgjax.config import EngineConfig

from .fakes import EOS, FakeEngine


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
async def test_model_info(client, path: str):
    info = (await client.get(path)).json()
    assert (info["model_path"], info["tokenizer_path"]) == ("embedded", "embedded")
    assert (info["is_generation"], info["weight_version"]) == (True, "default")
    assert (info["context_length"], info["page_size"], info["vocab_size"]) == (1024, 16, 256)
    assert (info["chat_template"], info["bos_token"], info["eos_token"]) == ("{{ messages }}", None, "</s>")
    assert (info["architectures"], info["eos_token_ids"]) == (["FakeForCausalLM"], [EOS])
    assert info["served_model_name"] == "fake"


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info(client, path: str):
    info = (await client.get(path)).json()
    secrets = {"api_key", "admin_api_key", "ssl_keyfile_password"}
    named = {field.name for config in (EngineConfig, ServerConfig) for field in dataclasses.fields(config)}
    assert named - secrets <= info.keys()
    assert not secrets & info.keys()
    assert info["version"] == sgjax.__version__
    assert info["max_total_num_tokens"] == 64 * 16
    (state,) = info["internal_states"]
    assert (state["num_running"], state["cache"]["num_pages"]) == (0, 64)


async def test_flush_cache(client, engine: FakeEngine):
    for method in ("GET", "POST"):
        response = await client.request(method, "/flush_cache")
        assert (response.status_code, response.json()) == (200, {"success": True, "freed_pages": 3})
    assert engine.num_flushes == 2


@pytest.mark.parametrize("path", ["/model_info", "/server_info", "/flush_cache"])
async def test_without_an_engine(client, engine: FakeEngine, path: str):
    engine.is_alive = False
    assert (await client.get(path)).status_code == 503


@pytest.mark.parametrize("path", ["/model_info", "/server_info", "/get_weight_version", "/v1/loads", "/get_load"])
async def test_an_engine_that_says_nothing(client, engine: FakeEngine, monkeypatch, path: str):
    monkeypatch.setattr(context, "ENGINE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(engine, "stats", functools.partial(asyncio.sleep, 3600))
    response = await client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_silent")
    assert response.headers["retry-after"] == "1"
