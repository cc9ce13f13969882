"""Real answers and events of every operation, against the OpenAPI document: nothing in them that it does not know."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import jsonschema
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from sgjax.types import FinishReason

from .conftest import client_of
from .fakes import FakeEngine, FakeTokenizer

HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object"}}
CHAT_TOOLS = [{"type": "function", "function": TOOL}]
REPLY = '<think>Hm.</think>Yes.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
PROGRAM = {
    "program": {
        "version": 1,
        "parameters": ["topic"],
        "ops": [
            {"kind": "append", "state": 0, "expr": ["On ", {"kind": "argument", "name": "topic"}]},
            {"kind": "fork", "state": 0, "children": [1]},
            {"kind": "append", "state": 1, "expr": {"kind": "gen", "name": "line", "sampling": {}}},
            {"kind": "assign", "state": 0, "name": "x", "value": {"kind": "constant", "value": [1]}},
        ],
    },
    "arguments": {"topic": "owls"},
    "sampling": {"max_new_tokens": 4},
}
OPENAI = {"return_receipt": True, "return_cached_tokens_details": True, "stream_options": {"include_usage": True}}

# Those whose answers also come as streams; each is asked for both.
STREAMING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/chat/completions", {"messages": HELLO, "tools": CHAT_TOOLS, "n": 2, **OPENAI}),
    ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2, "echo": True, **OPENAI}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "stop": ["k"]}),
    ("/v1/responses", {"input": "hi", "instructions": "Be brief.", "metadata": {"a": "b"}}),
    (
        "/v1/responses",
        {
            "input": [
                *(
                    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                    {"role": "user", "content": "hi"},
                ),
                {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "sunny"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            ],
            "tools": [{"type": "function", **TOOL}],
            "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]},
            "reasoning": {"effort": "low"},
            "top_logprobs": 1,
            "return_receipt": True,
        },
    ),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2, "text": {"format": {"type": "json_object"}}}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 900, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 900, "tools": [{"name": "f", "input_schema": {}}]}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 2}),
    ("/api/chat", {"messages": HELLO, "tools": CHAT_TOOLS, "think": True, "logprobs": True}),
    ("/api/chat", {"messages": []}),
    ("/api/generate", {"prompt": "hi", "think": True}),
    ("/api/generate", {"prompt": ""}),
    ("/generate", {"text": "a"}),
    (
        "/generate",
        {
            "text": ["a", "b"],
            "sampling_params": {"n": 2, "max_new_tokens": 2},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "token_ids_logprob": [70],
            "return_text_in_logprobs": True,
        },
    ),
    ("/run_program", PROGRAM),
]
WHOLE: list[tuple[str, dict[str, Any] | None]] = [
    *(("/health", None), ("/ready", None), ("/ping", None), ("/health_generate", None)),
    *(("/model_info", None), ("/get_weight_version", None), ("/server_info", None), ("/v1/loads", None)),
    *(("/v1/models", None), ("/v1/models/{model}", None)),
    *(("/api/version", None), ("/api/tags", None), ("/api/ps", None), ("/api/show", {"model": "m"})),
    *(("/tokenize", {"prompt": "a"}), ("/tokenize", {"prompt": ["a"]}), ("/tokenize", {"messages": HELLO})),
    *(("/detokenize", {"tokens": [65]}), ("/detokenize", {"tokens": [[65], [66]]})),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [33]}),
    ("/v1/messages/count_tokens", {"messages": HELLO}),
    ("/parse_function_call", {"text": REPLY, "tools": CHAT_TOOLS, "tool_call_parser": "hermes"}),
    ("/separate_reasoning", {"text": REPLY, "reasoning_parser": "qwen3"}),
    *(("/flush_cache", {}), ("/pause_generation", {}), ("/continue_generation", {})),
    *(("/update_weights_from_disk", {"model_path": "/new"}), ("/configure_logging", {"log_requests": True})),
    *(("/start_profile", {"output_dir": "traces"}), ("/stop_profile", {})),
    ("/open_session", {}),
]
OF_ONE_RESPONSE = {
    ("get", "/v1/responses/{response_id}"),
    ("delete", "/v1/responses/{response_id}"),
    ("post", "/v1/responses/{response_id}/cancel"),
    ("get", "/v1/responses/{response_id}/input_items"),
}


@functools.cache
def _document() -> dict[str, Any]:
    document = create_app(EngineHost(FakeEngine()), ServerConfig()).openapi()  # type: ignore[arg-type]
    return json.loads(json.dumps(document), object_hook=_closed)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema that allows no fields but those described, unless it says so."""
    return {"additionalProperties": False, **schema} if "properties" in schema and "type" in schema else schema


def _check(value: Any, schema: Mapping[str, Any]) -> None:
    checked = {**schema, "components": _document()["components"]}
    best = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(checked).iter_errors(value))
    assert best is None, (best.message, best.json_path, value)


def _content(method: str, path: str, status: int = 200) -> dict[str, Any]:
    return _document()["paths"][path][method]["responses"][str(status)]["content"]


def _check_answer(method: str, path: str, response: httpx.Response, status: int = 200) -> None:
    assert response.status_code == status, response.text
    _check(response.json(), _content(method, path, status)["application/json"]["schema"])


def _pieces(response: httpx.Response) -> Iterator[Any]:
    for line in response.text.splitlines():
        if line and not line.startswith("event: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(REPLY)
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call> </think> {{ enable_thinking }}")
    return engine


@pytest.mark.parametrize("end", [None, FinishReason("abort", message="aborted")])
@pytest.mark.parametrize(("path", "body"), STREAMING)
async def test_whole_and_streamed(client, engine: FakeEngine, path: str, body: dict, end: FinishReason | None):
    engine.end = None if path == "/run_program" else end  # a program fails then
    _check_answer("post", path, await client.post(path, json={"stream": False, **body}))
    response = await client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    ((_, stream),) = (item for item in _content("post", path).items() if item[0] != "application/json")
    pieces = list(_pieces(response))
    assert pieces
    for piece in pieces:
        _check(piece, stream["schema"]["contentSchema"])


@pytest.mark.parametrize(("path", "body"), WHOLE)
async def test_whole(
    client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path, path: str, body: dict | None
):
    monkeypatch.chdir(tmp_path)
    engine._reply = lambda request: "Yes."
    method = "get" if body is None else "post"
    _check_answer(method, path, await client.request(method, path.format(model="default"), json=body))


async def test_one_response(client):
    async def check(method: str, path: str, id: str) -> None:
        _check_answer(method, path, await client.request(method, path.format(response_id=id)))

    created = await client.post("/v1/responses", json={"input": "hi", "background": True})
    _check_answer("post", "/v1/responses", created)
    get, items, cancel, delete = sorted(OF_ONE_RESPONSE, key=lambda one: ("get", "post", "delete").index(one[0]))
    for method, path in (cancel, get, items, delete):
        await check(method, path, created.json()["id"])


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
async def test_not_ready(client, engine: FakeEngine, path: str):
    engine.is_alive = False
    _check_answer("get", path, await client.get(path), 503)


async def test_refused_weights(client):
    path = "/update_weights_from_disk"
    for body in ({"model_path": "missing"}, {}):
        _check_answer("post", path, await client.post(path, json=body), 400)


@pytest.mark.parametrize("path", dict.fromkeys(path for path, _ in STREAMING))
async def test_an_error_in_mid_stream(engine: FakeEngine, path: str):
    """It has the shape of the API's errors, or is among the events."""
    engine.error = ValueError("a bug")
    body = next(body for one, body in STREAMING if one == path)
    async with client_of(engine) as client:
        *_, last = _pieces(await client.post(path, json={**body, "stream": True}))
    if path not in ("/v1/responses", "/v1/messages"):
        _check(last, _content("post", path, "5XX")["application/json"]["schema"])  # type: ignore[arg-type]
    else:
        _check(last, _content("post", path)["text/event-stream"]["schema"]["contentSchema"])


def test_what_the_document_does_not_know_is_found():
    schema = _content("get", "/health")["application/json"]["schema"]
    _check({"status": "ready"}, schema)
    for wrong in ({"status": "ready", "more": 1}, {"status": "fine"}, {}):
        with pytest.raises(AssertionError):
            _check(wrong, schema)


def test_every_operation_is_compared():
    compared = {("post", path) for path, _ in STREAMING} | OF_ONE_RESPONSE
    compared |= {("get" if body is None else "post", path) for path, body in WHOLE}
    documented = {
        (method, path)
        for path, operations in _document()["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation["responses"].get("200", {}).get("content", {})
    }
    assert compared == documented


def test_references_lead_somewhere():
    text = json.dumps(_document())
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= _document()["components"]["schemas"].keys()
    assert not [name for name in names if "__" in name or "-" in name]  # two types of one name


def test_keys():
    assert _document()["components"]["securitySchemes"].keys() == {"apiKey", "adminKey", "keyHeader"}
    needed = {
        path: next(iter(operation.get("security", [{"none": []}])[0]))
        for path, operations in _document()["paths"].items()
        for operation in operations.values()
    }
    assert [path for path, key in needed.items() if key == "none"] == ["/ping", "/ready", "/health", "/health_generate"]
    assert {needed[path] for path in ("/v1/chat/completions", "/metrics", "/api/tags")} == {"apiKey"}
    assert {needed[path] for path in ("/server_info", "/flush_cache", "/load_lora_adapter")} == {"adminKey"}
