"""Bad requests are refused with the field's name, in OpenAI's shape, and harm nobody."""

from __future__ import annotations

import json

import pytest

import sgjax

from .conftest import events_of
from .fakes import FakeEngine

HELLO = {"messages": [{"role": "user", "content": "hi"}]}

BAD = [
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": "hi"}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ("/v1/chat/completions", {**HELLO, "temperature": -1}, "temperature"),
    ("/v1/chat/completions", {**HELLO, "temperature": "0.5"}, "temperature"),
    ("/v1/chat/completions", {**HELLO, "n": True}, "n"),
    ("/v1/chat/completions", {**HELLO, "stop": [""]}, "stop"),
    ("/v1/chat/completions", {**HELLO, "stop": 5}, "stop"),
    ("/v1/chat/completions", {**HELLO, "max_tokens": 0}, "max_tokens"),
    ("/v1/chat/completions", {**HELLO, "max_tokens": 5000}, "max_tokens"),
    ("/v1/chat/completions", {**HELLO, "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    ("/v1/chat/completions", {**HELLO, "top_logprobs": 2}, "return_logprob"),
    ("/v1/chat/completions", {**HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
    ("/v1/chat/completions", {**HELLO, "tools": [{"type": "function"}]}, "tools"),
    ("/v1/chat/completions", {**HELLO, "no_such_field": 1}, "no_such_field"),
    ("/v1/chat/completions", {**HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": [[97], []]}, "prompt"),
    ("/v1/completions", {"prompt": [97, -1]}, "prompt"),
    ("/v1/completions", {"prompt": [97, 256], "echo": True}, "prompt"),
    ("/v1/completions", {"prompt": ["a", 98]}, "prompt"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("/v1/completions", {"prompt": "a", "best_of": 21}, "best_of"),
    ("/v1/completions", {"prompt": "a", "best_of": 2, "n": 3}, "best_of"),
    ("/v1/completions", {"prompt": "a", "logprobs": -1}, "logprobs"),
    ("/v1/completions", {"prompt": "a", "stream_options": {"x": 1}}, "stream_options"),
    ("/generate", {}, "text"),
    ("/generate", {"text": "a", "input_ids": [1]}, "text"),
    ("/generate", {"text": []}, "text"),
    ("/generate", {"input_ids": []}, "input_ids"),
    ("/generate", {"input_ids": [[]]}, "input_ids"),
    ("/generate", {"input_ids": "a"}, "input_ids"),
    ("/generate", {"input_ids": [1, "a"]}, "input_ids"),
    ("/generate", {"input_ids": [1, [2]]}, "input_ids"),
    ("/generate", {"text": "a", "sampling_params": {"top_p": 0}}, "top_p"),
    ("/generate", {"text": "a", "sampling_params": {"beams": 2}}, "beams"),
    ("/generate", {"text": "a", "sampling_params": {"top_k": 2**31}}, "top_k"),
    ("/generate", {"text": "a", "sampling_params": {"top_k": 10**400}}, "top_k"),
    ("/generate", {"text": "a", "sampling_params": {"n": 10**9}}, "n"),
    ("/generate", {"text": "a", "sampling_params": {"seed": 2**63}}, "seed"),
    ("/generate", {"text": "a", "sampling_params": {"temperature": 10**400}}, "temperature"),
    ("/generate", {"text": "a", "sampling_params": {"repetition_penalty": 1e-300}}, "repetition_penalty"),
    ("/generate", {"text": "a", "sampling_params": {"logit_bias": {"5": 1e300}}}, "logit_bias"),
    ("/generate", {"text": "a", "sampling_params": {"stop_regex": "("}}, "stop_regex"),
    ("/generate", {"text": "a", "sampling_params": {"regex": ""}}, "regex"),
    ("/generate", {"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "ebnf"),
    ("/generate", {"text": "a", "sampling_params": {"json_schema": [1]}}, "json_schema"),
    ("/generate", {"text": "a", "sampling_params": {"choices": ["a", 1]}}, "choices"),
    ("/generate", {"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
    ("/generate", {"text": ["a", "b"], "rid": ["r", "r"]}, "rid"),
    ("/generate", {"text": "a", "return_logprob": True, "logprob_start_len": 9}, "logprob_start_len"),
    ("/generate", {"text": "a", "image_data": "x.png"}, "image_data"),
    ("/generate", {"text": "a", "return_hidden_states": True}, "return_hidden_states"),
]


@pytest.mark.parametrize(("url", "body", "param"), BAD, ids=lambda value: repr(value)[:60])
@pytest.mark.parametrize("stream", [False, True])
async def test_refused(client, engine: FakeEngine, url: str, body: dict, param: str, stream: bool):
    response = await client.post(url, json={**body, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]
    assert {request.rid for request in engine.submitted} == set(engine.aborted)


@pytest.mark.parametrize(
    ("url", "body", "message"),
    [
        ("/v1/chat/completions", {**HELLO, "stop": 5}, "stop: must be a string or a list"),
        ("/v1/chat/completions", {**HELLO, "stop": ["a", 5]}, "stop.1: must be a string"),
        (
            "/v1/chat/completions",
            {**HELLO, "tool_choice": "bogus"},
            "tool_choice: must be 'auto', 'none' or 'required' or an object",
        ),
        ("/v1/chat/completions", {**HELLO, "tool_choice": {"type": "function"}}, "tool_choice.function: is missing"),
        ("/v1/completions", {"prompt": [[1, "a"]]}, "prompt.0.1: must be an integer"),
        ("/v1/responses", {"input": [{"role": "user", "content": 5}]}, "input.0.content: must be a string or a list"),
        ("/v1/responses", {"input": [{"type": "x"}]}, "input.0: 'x' is not supported, only "),
        ("/generate", {"text": "a", "sampling_params": {"custom_params": {"a": 1}}}, "custom_params: not supported"),
    ],
)
async def test_plain_words(client, url: str, body: dict, message: str):
    error = (await client.post(url, json=body)).json()["error"]
    assert error["message"].startswith(message)
    assert "[" not in error["message"]


async def test_custom_params_that_ask_nothing(client):
    for empty in (None, {}):
        body = {"text": "a", "sampling_params": {"custom_params": empty}}
        assert (await client.post("/generate", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("DELETE", "/flush_cache", "GET, POST"),
        ("PUT", "/v1/responses/x", "DELETE, GET"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/api/tags", "GET"),
        ("POST", "/static/live.js", "GET"),
    ],
)
async def test_method_that_a_path_does_not_have(client, method: str, path: str, allowed: str):
    response = await client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert "Method Not Allowed" in response.text


@pytest.mark.parametrize("content", [b"", b"{", b'"text"', b"[1]", b'{"text": "\xff"}', b"[" * 100_000])
async def test_body_that_is_no_json_object(client, content: bytes):
    response = await client.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/generate", {"text": "\ud800"}, "text"),
        ("/generate", {"text": "a", "rid": "\ud800"}, "rid"),
        ("/generate", {"text": "a", "\ud800": 1}, None),
        ("/generate", {"text": "a", "sampling_params": {"\ud800": 1}}, "sampling_params"),
        ("/v1/completions", {"prompt": "\ud800"}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ],
)
async def test_text_that_is_not_unicode(client, url: str, body: dict, param: str | None):
    """A lone surrogate is valid JSON but no text."""
    response = await client.post(url, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_batch_that_is_refused_in_part_leaves_nothing(client, engine: FakeEngine):
    response = await client.post("/generate", json={"input_ids": [[1], [2], [999]], "rid": "r"})
    assert response.status_code == 400
    assert engine.aborted == ["r_0", "r_1"]


async def test_queue_full(client, engine: FakeEngine):
    engine.queue_full = True
    response = await client.post("/generate", json={"text": "a"})
    assert response.status_code == 429
    assert response.headers["retry-after"]
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_engine_dead(client, engine: FakeEngine):
    engine.is_alive, engine.failure = False, RuntimeError("out of memory")
    response = await client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 503
    assert "out of memory" in response.json()["error"]["message"]


async def test_engine_fails_on_the_way(client, engine: FakeEngine):
    engine.error = ValueError("secret")
    response = await client.post("/v1/completions", json={"prompt": "a", "rid": "r"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert engine.aborted == ["r"]


async def test_engine_fails_on_the_way_of_a_stream(client, engine: FakeEngine):
    engine.error = sgjax.EngineError("the engine has failed: out of memory")
    response = await client.post("/v1/completions", json={"prompt": "a", "rid": "r", "stream": True})
    first, last = events_of(response)
    assert first["choices"][0]["text"] == "H"
    assert "out of memory" in last["error"]["message"]
    assert engine.aborted == ["r"]


async def test_unknown_routes_and_models(client):
    for path in ("/nothing", "/v1/models/other"):
        response = await client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
    assert (await client.get("/generate")).status_code == 405
    assert (await client.get("/v1/models/default")).json()["id"] == "fake"
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["max_model_len"]) == ("fake", 1024)
