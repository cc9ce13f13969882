"""/v1/messages: what the official client sees of a fake engine, and what is sent and refused underneath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pydantic
import pytest

from sgjax.types import FinishReason

from .fakes import FakeEngine

URL = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
PROMPT = "user:hi|assistant:"
ASK: dict[str, Any] = {"model": "default", "max_tokens": 100, "messages": HELLO}


@pytest.fixture
def sdk(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as sdk:
        yield sdk


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a finished stream, whose names must be their types."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def prompt_of(engine: FakeEngine) -> str:
    return bytes(engine.submitted[-1].input_ids).decode()


def test_message(sdk: anthropic.Anthropic, engine: FakeEngine):
    answer = sdk.messages.create(**ASK, system="Be brief.")
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", "fake", "end_turn")
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "Hello world"}]
    assert answer.stop_sequence is None
    assert prompt_of(engine) == "system:Be brief.|" + PROMPT
    # The two cached tokens are not among the input tokens.
    assert answer.usage.cache_read_input_tokens == 2
    assert answer.usage.input_tokens == len("system:Be brief.|" + PROMPT) - 2
    assert answer.usage.output_tokens == 12
    assert answer.id == engine.submitted[0].rid
    assert engine.submitted[0].sampling.max_new_tokens == 100


def test_stream(sdk: anthropic.Anthropic):
    with sdk.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == "Hello world"
        final = stream.get_final_message()
    assert final.content[0].to_dict()["text"] == "Hello world"
    assert final.stop_reason == "end_turn"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (len(PROMPT) - 2, 12)
    assert final.usage.cache_read_input_tokens == 2


async def test_async(url: str):
    async with anthropic.AsyncAnthropic(base_url=url, api_key="unused", max_retries=0) as sdk:
        answer = await sdk.messages.create(**ASK)
        async with sdk.messages.stream(**ASK) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
    assert "".join(texts) == "Hello world"
    assert len(texts) > 3
    assert final.to_dict()["content"] == answer.to_dict()["content"]


async def test_events(client):
    """Every event of a stream, in order."""
    first, ping, start, *deltas, stop, delta, end = events_of(await client.post(URL, json={**ASK, "stream": True}))
    head = first["message"]
    assert first["type"] == "message_start"
    assert (head["content"], head["stop_reason"], head["stop_sequence"]) == ([], None, None)
    assert (head["usage"]["input_tokens"], head["usage"]["output_tokens"]) == (len(PROMPT), 0)
    assert ping == {"type": "ping"}
    assert start == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {event["type"] for event in deltas} == {"content_block_delta"}
    assert "".join(event["delta"]["text"] for event in deltas) == "Hello world"
    assert stop == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"] == {
        "input_tokens": len(PROMPT) - 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 12,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    assert end == {"type": "message_stop"}


async def test_fields_reach_the_engine(client, engine: FakeEngine):
    engine.generation_defaults.update(temperature=0.6, top_p=0.9)
    fields = {
        "temperature": 0.5,
        "top_k": 3,
        "stop_sequences": ["x", "y"],
        "metadata": {"user_id": "someone"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "output_config": {"effort": "low"},
    }
    response = await client.post(URL, json={**ASK, **fields})
    assert response.status_code == 200
    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert sampling.stop == ("x", "y")


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (FinishReason("stop", 0), "end_turn", None),
        (FinishReason("stop", "world"), "stop_sequence", "world"),
        (FinishReason("abort", message="paused"), "max_tokens", None),
    ],
)
async def test_stop_reasons(client, engine: FakeEngine, end: FinishReason, reason: str, sequence: str | None):
    engine.end = end
    whole = (await client.post(URL, json=ASK)).json()
    *_, delta, _ = events_of(await client.post(URL, json={**ASK, "stream": True}))
    for given in (whole, delta["delta"]):
        assert (given["stop_reason"], given["stop_sequence"]) == (reason, sequence)


async def test_limits(client, engine: FakeEngine):
    """More may be asked for than the context has room for."""
    engine._reply = lambda request: "x" * 2000
    for max_tokens, reason in ((3, "max_tokens"), (0, "max_tokens"), (50_000, "model_context_window_exceeded")):
        body = (await client.post(URL, json={**ASK, "max_tokens": max_tokens})).json()
        assert body["stop_reason"] == reason
    assert [request.sampling.max_new_tokens for request in engine.submitted] == [3, 0, None]


class City(pydantic.BaseModel):
    name: str


def test_output_by_a_schema(sdk: anthropic.Anthropic, engine: FakeEngine):
    engine._reply = lambda request: '{"name": "Paris"}'
    answer = sdk.messages.parse(**ASK, output_format=City)
    assert answer.parsed_output == City(name="Paris")
    (request,) = engine.submitted
    assert json.loads(request.sampling.json_schema or "")["properties"].keys() == {"name"}


@pytest.mark.parametrize("stream", [False, True])
async def test_schema_that_is_refused(client, engine: FakeEngine, stream: bool):
    engine.bad_grammar = '{"type": "nonsense"}'
    output = {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}
    response = await client.post(URL, json={**ASK, "output_config": output, "stream": stream})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("output_config")


async def test_conversation(client, engine: FakeEngine):
    """Blocks of text are lines of one message, and so are neighbours of one role."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "b"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "c", "citations": None},
            ],
        },
        {"role": "user", "content": "d"},
    ]
    system = [{"type": "text", "text": "e"}, {"type": "text", "text": "f"}]
    response = await client.post(URL, json={**ASK, "messages": messages, "system": system})
    assert response.status_code == 200
    assert prompt_of(engine) == "system:e\nf|user:a\nb|assistant:c|user:d|assistant:"


async def test_answer_that_continues(client, engine: FakeEngine):
    messages = [*HELLO, {"role": "assistant", "content": "He"}]
    await client.post(URL, json={**ASK, "messages": messages})
    assert prompt_of(engine) == "user:hi|assistant:He"


async def test_count_tokens(client, engine: FakeEngine):
    body = {"model": "default", "messages": HELLO, "system": "s"}
    answer = (await client.post(f"{URL}/count_tokens", json=body)).json()
    assert answer == {"input_tokens": len("system:s|" + PROMPT)}
    assert engine.submitted == []


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
BAD = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image' is not supported, only 'text', 'tool_result'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
        "tool_use",
    ),
    ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
    ({"system": 5}, "system"),
    ({"temperature": 200}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ({"container": "c"}, "container"),
]


@pytest.mark.parametrize(("fields", "name"), BAD, ids=lambda value: repr(value)[:60])
async def test_refused(client, engine: FakeEngine, fields: dict[str, Any], name: str):
    response = await client.post(URL, json={**ASK, **fields})
    body = response.json()
    assert response.status_code == 400
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert name in body["error"]["message"]
    assert {request.rid for request in engine.submitted} == set(engine.aborted)


def test_errors_of_the_client(sdk: anthropic.Anthropic, engine: FakeEngine):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        sdk.messages.create(**{**ASK, "max_tokens": -1})
    engine.queue_full = True
    with pytest.raises(anthropic.RateLimitError, match="queue"):
        sdk.messages.create(**ASK)
    engine.queue_full = False
    engine.error = ValueError("secret")
    with pytest.raises(anthropic.InternalServerError, match="ValueError"):
        sdk.messages.create(**ASK)
    with pytest.raises(anthropic.APIStatusError, match="api_error") as failed, sdk.messages.stream(**ASK) as stream:
        stream.until_done()
    assert "secret" not in str(failed.value)
