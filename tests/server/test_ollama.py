"""Ollama's API: what the official client sees of a fake engine, and what is sent and refused underneath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

import sgjax
from sgjax.types import FinishReason

from .fakes import FakeEngine

HELLO = [{"role": "user", "content": "hi"}]
PROMPT = "user:hi|assistant:"


@pytest.fixture
def sdk(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url) as sdk:
        yield sdk


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a finished stream."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def prompt_of(engine: FakeEngine) -> str:
    return bytes(engine.submitted[-1].input_ids).decode()


def test_chat(sdk: ollama.Client, engine: FakeEngine):
    answer = sdk.chat(model="llama3.2", messages=HELLO)
    assert (answer.message.role, answer.message.content) == ("assistant", "Hello world")
    assert (answer.model, answer.done, answer.done_reason) == ("fake:latest", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (len(PROMPT), 12)
    assert answer.total_duration == 500_000_000
    assert answer.created_at is not None
    assert prompt_of(engine) == PROMPT
    assert engine.submitted[0].sampling.max_new_tokens is None


def test_chat_stream(sdk: ollama.Client):
    *parts, last = sdk.chat(model="fake:latest", messages=HELLO, stream=True)
    assert "".join(part.message.content or "" for part in parts) == "Hello world"
    assert len(parts) > 3
    assert not any(part.done for part in parts)
    assert (last.message.content, last.done, last.done_reason, last.eval_count) == ("", True, "stop", 12)


def test_generate(sdk: ollama.Client, engine: FakeEngine):
    answer = sdk.generate(model="fake", prompt="hi", system="s")
    assert (answer.response, answer.done_reason) == ("Hello world", "stop")
    assert prompt_of(engine) == "system:s|" + PROMPT
    parts = list(sdk.generate(model="fake", prompt="hi", stream=True))
    assert "".join(part.response or "" for part in parts) == "Hello world"
    assert parts[-1].done


def test_raw_prompt(sdk: ollama.Client, engine: FakeEngine):
    assert sdk.generate(model="fake", prompt="hi", raw=True).response == "Hello world"
    assert prompt_of(engine) == "hi"
    parts = list(sdk.generate(model="fake", prompt="hi", raw=True, stream=True))
    assert "".join(part.response or "" for part in parts) == "Hello world"
    assert prompt_of(engine) == "hi"


async def test_async(url: str):
    async with ollama.AsyncClient(host=url) as sdk:
        answer = await sdk.chat(model="fake", messages=HELLO)
        parts = [part async for part in await sdk.chat(model="fake", messages=HELLO, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == answer.message.content == "Hello world"


async def test_streams_unless_told_otherwise(client):
    parts = lines_of(await client.post("/api/chat", json={"messages": HELLO}))
    assert [part["done"] for part in parts] == [False] * 11 + [True]
    assert (await client.post("/api/chat", json={"messages": HELLO, "stream": False})).json()["done"]


async def test_options_reach_the_engine(client, engine: FakeEngine):
    engine.generation_defaults.update(temperature=0.6, top_p=0.9)
    options = {
        "num_predict": 7,
        "temperature": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 9,
        "stop": ["x"],
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "num_ctx": 4096,
        "num_thread": 8,
        "mirostat": 0,
    }
    body = {"model": "any", "messages": HELLO, "stream": False, "options": options, "keep_alive": "5m"}
    answer = (await client.post("/api/chat", json=body)).json()
    assert answer["done_reason"] == "length"
    sampling = engine.submitted[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 3)
    assert (sampling.min_p, sampling.seed, sampling.stop, sampling.repetition_penalty) == (0.1, 9, ("x",), 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)


async def test_num_predict_without_a_limit(client, engine: FakeEngine):
    for number in (-1, -2, 0, 5000):
        for raw in (False, True):
            body = {"prompt": "a", "raw": raw, "options": {"num_predict": number}}
            assert (await client.post("/api/generate", json=body)).status_code == 200
    assert [request.sampling.max_new_tokens for request in engine.submitted] == [None] * 8


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(("format", "schema"), [("json", {"type": "object"}), (SCHEMA, SCHEMA), ("", None)])
async def test_format(client, engine: FakeEngine, format: Any, schema: Any):
    await client.post("/api/chat", json={"messages": HELLO, "format": format})
    given = engine.submitted[0].sampling.json_schema
    assert (None if given is None else json.loads(given)) == schema


async def test_format_that_is_refused(client, engine: FakeEngine):
    """Before the stream begins."""
    engine.bad_grammar = '{"type": "nonsense"}'
    response = await client.post("/api/chat", json={"messages": HELLO, "format": {"type": "nonsense"}})
    assert response.status_code == 400
    assert response.json()["error"].startswith("format")


def test_log_probabilities(sdk: ollama.Client):
    answer = sdk.chat(model="fake", messages=HELLO, options={"num_predict": 1}, logprobs=True, top_logprobs=2)
    (token,) = answer.logprobs or []
    assert (token.token, token.logprob) == ("H", -0.5)
    assert [one.token for one in token.top_logprobs or []] == ["A", "B"]


async def test_asking_for_nothing_loads(client, engine: FakeEngine):
    for path in ("/api/chat", "/api/generate"):
        answer = (await client.post(path, json={"model": "fake"})).json()
        assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert engine.submitted == []


async def test_ended_on_the_way(client, engine: FakeEngine):
    engine.end = FinishReason("abort", message="paused")
    *_, last = lines_of(await client.post("/api/generate", json={"prompt": "a"}))
    assert (last["done"], last["done_reason"]) == (True, "length")


def test_models(sdk: ollama.Client, engine: FakeEngine):
    engine.generation_defaults.update(temperature=0.6)
    (model,) = sdk.list().models
    assert model.model == "fake:latest"
    assert model.details is not None
    assert model.details.family == "fake"
    assert model.modified_at is not None
    shown = sdk.show("fake")
    assert shown.template == engine.tokenizer.chat_template
    assert shown.modelinfo is not None
    assert shown.modelinfo["fake.context_length"] == 1024
    assert shown.parameters == "temperature 0.6"
    assert "completion" in (shown.capabilities or [])
    (running,) = sdk.ps().models
    assert (running.model, running.context_length, running.digest) == ("fake:latest", 1024, model.digest)


async def test_version(client):
    assert (await client.get("/api/version")).json() == {"version": sgjax.__version__}


async def test_bodies_as_curl_labels_them(client):
    """Ollama's documentation calls curl without a content type. A page of another site is not let through by that."""
    body = json.dumps({"prompt": "a", "stream": False})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await client.post("/api/generate", content=body, headers=headers)).json()["response"] == "Hello world"
    headers["Origin"] = "https://elsewhere.example"
    assert (await client.post("/api/generate", content=body, headers=headers)).status_code == 400


BAD = [
    ("/api/chat", {"messages": "hi"}, "messages"),
    ("/api/chat", {"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
    ("/api/chat", {"messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]}, "images"),
    ("/api/chat", {"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
    ("/api/chat", {"messages": HELLO, "options": {"temperature": -1}}, "options.temperature"),
    ("/api/chat", {"messages": HELLO, "options": {"num_predict": 2**31}}, "options.num_predict"),
    ("/api/chat", {"messages": HELLO, "options": {"mirostat": 2}}, "mirostat"),
    ("/api/chat", {"messages": HELLO, "options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
    ("/api/chat", {"messages": HELLO, "format": "xml"}, "format"),
    ("/api/chat", {"messages": HELLO, "think": "hard"}, "think"),
    ("/api/generate", {"prompt": "x" * 2000}, "prompt"),
    ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
    ("/api/generate", {"prompt": "a", "context": [1]}, "context"),
    ("/api/generate", {"prompt": "a", "images": ["aGk="]}, "images"),
    ("/api/generate", {"prompt": "a", "raw": True, "system": "s"}, "system"),
]


@pytest.mark.parametrize(("path", "body", "name"), BAD, ids=lambda value: repr(value)[:60])
async def test_refused(client, engine: FakeEngine, path: str, body: dict[str, Any], name: str):
    response = await client.post(path, json={**body, "model": "fake"})
    assert response.status_code == 400
    assert name in response.json()["error"]
    assert {request.rid for request in engine.submitted} == set(engine.aborted)


def test_errors_of_the_client(sdk: ollama.Client, engine: FakeEngine):
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature") as refused:
        sdk.chat(model="fake", messages=HELLO, options={"temperature": -1})
    assert refused.value.status_code == 400
    engine.queue_full = True
    with pytest.raises(ollama.ResponseError, match="queue"):
        list(sdk.chat(model="fake", messages=HELLO, stream=True))
    engine.queue_full = False
    engine.error = sgjax.EngineError("the engine has failed: out of memory")
    with pytest.raises(ollama.ResponseError, match="out of memory"):
        list(sdk.chat(model="fake", messages=HELLO, stream=True))
    with pytest.raises(ollama.ResponseError, match="not an embedding model"):
        sdk.embed(model="fake", input="a")
