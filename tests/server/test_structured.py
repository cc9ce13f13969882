"""Grammars: from the fields of every API to sampling parameters, and refusals that come late."""

from __future__ import annotations

import asyncio
import json

import pytest

from sgjax.types import FinishReason, GrammarSpec

from .conftest import events_of
from .fakes import FakeEngine

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = json.dumps(SCHEMA)
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f>"]}
TAG_TEXT = json.dumps({"type": "structural_tag", **TAG})
NAMED = {"name": "point", "description": "a point", "schema": SCHEMA, "strict": True}

ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}

FIELDS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "regex": None, "choices": None}, None),
    ({"response_format": {"type": "json_object"}}, ("json_schema", '{"type": "object"}')),
    ({"response_format": {"type": "json_object", "json_schema": None}}, ("json_schema", '{"type": "object"}')),
    ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, ("json_schema", TEXT)),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": True}}}, ("json_schema", "true")),
    ({"response_format": {"type": "structural_tag", **TAG}}, ("structural_tag", TAG_TEXT)),
    (
        {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
        ("structural_tag", '{"type": "structural_tag", "format": {"type": "any_text"}}'),
    ),
    ({"json_schema": TEXT}, ("json_schema", TEXT)),
    ({"json_schema": SCHEMA}, ("json_schema", TEXT)),
    ({"regex": "a+"}, ("regex", "a+")),
    ({"ebnf": 'root ::= "a"'}, ("ebnf", 'root ::= "a"')),
    ({"structural_tag": TAG_TEXT}, ("structural_tag", TAG_TEXT)),
    ({"choices": ["a", "b"]}, ("choices", '["a", "b"]')),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, ("json_schema", TEXT)),
    ({"guided_regex": "a+"}, ("regex", "a+")),
    ({"guided_choice": ["a"]}, ("choices", '["a"]')),
    ({"guided_grammar": "g"}, ("ebnf", "g")),
    ({"structured_outputs": {"json": SCHEMA, "regex": None}}, ("json_schema", TEXT)),
    ({"structured_outputs": {"json_object": True}}, ("json_schema", '{"type": "object"}')),
    ({"structured_outputs": {"regex": "a+"}}, ("regex", "a+")),
    ({"structured_outputs": {"choice": ["a"]}}, ("choices", '["a"]')),
    ({"structured_outputs": {"grammar": "g"}}, ("ebnf", "g")),
    ({"structured_outputs": {"structural_tag": TAG_TEXT}}, ("structural_tag", TAG_TEXT)),
    ({"structured_outputs": {}}, None),
]


@pytest.mark.parametrize(("fields", "expected"), FIELDS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("url", ROUTES)
async def test_openai_fields(client, engine: FakeEngine, url: str, fields: dict, expected):
    response = await client.post(url, json={**ROUTES[url], **fields})
    assert response.status_code == 200, response.text
    assert engine.submitted[0].sampling.grammar == (expected and GrammarSpec(*expected))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"json_schema": TEXT, "regex": None, "ebnf": None, "structural_tag": None}, ("json_schema", TEXT)),
        ({"json_schema": SCHEMA}, ("json_schema", TEXT)),
        ({"json_schema": "$$ANY$$"}, ("json_schema", "$$ANY$$")),
        ({"regex": "a+"}, ("regex", "a+")),
        ({"ebnf": "g"}, ("ebnf", "g")),
        ({"structural_tag": TAG_TEXT}, ("structural_tag", TAG_TEXT)),
        ({"choices": ["a"]}, ("choices", '["a"]')),
        ({"json_schema": None, "choices": None}, None),
    ],
)
async def test_native_fields(client, engine: FakeEngine, params: dict, expected):
    response = await client.post("/generate", json={"text": "hi", "sampling_params": params})
    assert response.status_code == 200, response.text
    assert engine.submitted[0].sampling.grammar == (expected and GrammarSpec(*expected))


JSON_OBJECT = {"response_format": {"type": "json_object"}}

BAD = [
    ({"response_format": {"type": "yaml"}}, "response_format", "type"),
    ({"response_format": {}}, "response_format", "type"),
    ({"response_format": "json"}, "response_format", ""),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema: is missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format", "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}, "response_format", "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {**NAMED, "x": 1}}}, "response_format", "schema.x"),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format", "response_format.x: not supported"),
    ({"response_format": {"type": "json_object", "json_schema": NAMED}}, "response_format", "json_schema"),
    ({**JSON_OBJECT, "regex": "a"}, "regex", "response_format"),
    ({**JSON_OBJECT, "structured_outputs": {"regex": "a"}}, "structured_outputs", "response_format"),
    ({"regex": "a", "guided_choice": ["a"]}, "guided_choice", "regex"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "regex"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs", "whitespace_pattern"),
    ({"guided_regex": ""}, "guided_regex", "empty"),
    ({"guided_choice": [""]}, "guided_choice", "empty"),
    ({"guided_choice": "a"}, "guided_choice", "list"),
    ({"json_schema": [1]}, "json_schema", ""),
    ({**JSON_OBJECT, "min_tokens": 2}, "min_tokens", ""),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("url", ROUTES)
async def test_refused_at_once(client, engine: FakeEngine, url: str, fields: dict, param: str, words: str):
    response = await client.post(url, json={**ROUTES[url], **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param)
    assert words in error["message"]
    assert engine.submitted == []


LATE = [
    *[(url, {**body, "regex": "("}, "regex") for url, body in ROUTES.items()],
    *[(url, {**body, "structured_outputs": {"regex": "("}}, "structured_outputs") for url, body in ROUTES.items()],
    ("/v1/completions", {"prompt": ["a", "b"], "guided_regex": "("}, "guided_regex"),
    ("/generate", {"text": "a", "sampling_params": {"regex": "("}}, "regex"),
    ("/generate", {"text": ["a", "b"], "sampling_params": [{}, {"regex": "("}]}, "regex"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("url", "body", "param"), LATE)
async def test_refused_when_compiled(client, engine: FakeEngine, url: str, body: dict, param: str, stream: bool):
    """The status is still 400, also for a stream; the rest of a batch is aborted, what has ended is not."""
    engine.bad_grammar = "("
    response = await client.post(url, json={**body, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"] == f"{param}: at /properties/a: no such type"
    is_batch = len(engine.submitted) > 1
    refused = next(request for request in engine.submitted if request.sampling.grammar)
    assert engine.aborted == [request.rid for request in engine.submitted if is_batch and request is not refused]


@pytest.mark.parametrize("url", ROUTES)
async def test_schema_refused_when_compiled(client, engine: FakeEngine, url: str):
    engine.bad_grammar = TEXT
    body = {**ROUTES[url], "response_format": {"type": "json_schema", "json_schema": NAMED}}
    error = (await client.post(url, json=body)).json()["error"]
    assert (error["param"], error["message"]) == ("response_format", "response_format: at /properties/a: no such type")


@pytest.mark.parametrize("url", ROUTES)
async def test_stream(client, url: str):
    events = events_of(await client.post(url, json={**ROUTES[url], "regex": "a", "stream": True}))
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("url", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_is_ended(client, engine: FakeEngine, url: str, stream: bool):
    """OpenAI has no reason for it: clients get the one for an incomplete answer, and the message beside it."""
    engine.end = FinishReason("abort", message="nothing may follow")
    response = await client.post(url, json={**ROUTES[url], "regex": "a", "stream": stream})
    body = events_of(response)[-1] if stream else response.json()
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["finish_message"]) == ("length", "nothing may follow")


async def test_native_answer_that_is_ended(client, engine: FakeEngine):
    engine.end = FinishReason("abort", message="nothing may follow")
    answer = (await client.post("/generate", json={"text": "a", "sampling_params": {"regex": "a"}})).json()
    assert answer["meta_info"]["finish_reason"] == {"type": "abort", "message": "nothing may follow"}


async def test_neighbours_do_not_wait_for_a_grammar(client, engine: FakeEngine):
    engine.compiling = True
    waiting = asyncio.create_task(client.post("/generate", json={"text": "a", "sampling_params": {"regex": "a"}}))
    while not engine.submitted:
        await asyncio.sleep(0)
    assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_openapi_page_shows_the_formats(client):
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert {"type", "json_schema", "structures", "triggers", "format"} <= schemas["ResponseFormat"]["properties"].keys()
    assert "schema" in schemas["NamedSchema"]["properties"]
    assert "json" in schemas["StructuredOutputs"]["properties"]
    for request in ("ChatCompletionRequest", "CompletionRequest"):
        assert {"response_format", "regex", "ebnf", "guided_json"} <= schemas[request]["properties"].keys()
