"""The events of a streamed response."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import ResponseTextDeltaEvent

import sgjax

from ..conftest import client_of
from ..fakes import FakeEngine
from .test_create import CALL, THINKS, URL, WEATHER


async def events(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The events, whose names and numbers must be in order."""
    response = await client.post(URL, json={"input": "hi", "stream": True, **fields})
    assert response.status_code == 200
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def steps(found: list[dict[str, Any]]) -> list[str]:
    """The events' types, with repetitions left out."""
    types = [event["type"].removeprefix("response.") for event in found]
    return [type for i, type in enumerate(types) if i == 0 or types[i - 1] != type]


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
THOUGHT = [*MESSAGE[:2], "reasoning_text.delta", "reasoning_text.done", "content_part.done"]
ARGUMENTS = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
ITEM_DONE = "output_item.done"


async def test_text(client):
    found = await events(client)
    assert steps(found) == ["created", "in_progress", *MESSAGE, ITEM_DONE, "completed"]
    first, last = found[0]["response"], found[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert (last["status"], last["id"], last["usage"]["output_tokens"]) == ("completed", first["id"], 12)
    deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
    assert deltas == list("Hello world")
    added, part = found[2], found[3]
    assert (added["item"]["content"], added["item"]["status"]) == ([], "in_progress")
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert last["output"] == [next(event["item"] for event in found if event["type"] == "response.output_item.done")]
    ids = {event["item_id"] for event in found if "item_id" in event}
    assert ids == {last["output"][0]["id"]}


async def test_all_kinds_of_items(engine: FakeEngine):
    engine._reply = lambda request: f"<think>Hm.</think>Let me see.\n\n{CALL}\n{CALL}"
    async with client_of(engine, THINKS) as client:
        found = await events(client, tools=[WEATHER])
        assert steps(found) == [
            *("created", "in_progress"),
            *(*THOUGHT, ITEM_DONE, *MESSAGE, ITEM_DONE, *ARGUMENTS, ITEM_DONE, *ARGUMENTS, ITEM_DONE),
            "completed",
        ]
        output = found[-1]["response"]["output"]
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
        for number, item in enumerate(output):
            own = [event for event in found if event.get("output_index") == number]
            assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
            whole = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
            assert whole == (item["arguments"] if "arguments" in item else item["content"][0]["text"])
            assert own[-1]["item"] == item
        whole = (await client.post(URL, json={"input": "hi", "tools": [WEATHER]})).json()["output"]
        assert [_without_ids(item) for item in whole] == [_without_ids(item) for item in output]


def _without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


async def test_logprobs(client):
    found = await events(client, top_logprobs=1, max_output_tokens=2)
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in event["logprobs"]] for event in deltas] == [["H"], ["e"]]
    (done,) = [event for event in found if event["type"] == "response.output_text.done"]
    assert [token["token"] for token in done["logprobs"]] == ["H", "e"]


async def test_cut_off(client):
    found = await events(client, max_output_tokens=3)
    assert steps(found)[-1] == "incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_engine_fails_on_the_way(client, engine: FakeEngine):
    engine.error = sgjax.EngineError("the engine has failed: out of memory")
    found = await events(client)
    assert steps(found)[-1] == "failed"
    assert "out of memory" in found[-1]["response"]["error"]["message"]
    stored = (await client.get(f"{URL}/{found[0]['response']['id']}")).json()
    assert stored["status"] == "failed"
    assert engine.aborted == [engine.submitted[0].rid]


class Weather(pydantic.BaseModel):
    city: str


@pytest.fixture
async def api(url: str):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_openais_client_reads_the_stream(api: openai.AsyncOpenAI):
    stream = await api.responses.create(model="m", input="hi", stream=True)
    text = "".join([event.delta async for event in stream if isinstance(event, ResponseTextDeltaEvent)])
    assert text == "Hello world"


async def test_stream_helper_of_openai(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine._reply = lambda request: f"Wait. {CALL}"
    tools: Any = [WEATHER]
    async with api.responses.stream(model="m", input="hi", tools=tools) as stream:
        snapshots = [event.snapshot async for event in stream if event.type.endswith("arguments.delta")]  # type: ignore
        final = await stream.get_final_response()
    assert snapshots[-1] == '{"city": "Ulm"}'
    assert final.output_text == "Wait."
    assert [item.type for item in final.output] == ["message", "function_call"]


async def test_parsed_stream(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine._reply = lambda request: '{"city": "Ulm"}'
    async with api.responses.stream(model="m", input="hi", text_format=Weather) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Weather(city="Ulm")
