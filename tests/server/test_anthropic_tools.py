"""Tools and thinking in /v1/messages, on a fake engine that writes Hermes' format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from .fakes import FakeEngine, FakeTokenizer

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "A forecast.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME: dict[str, Any] = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
ASK: dict[str, Any] = {
    "model": "default",
    "max_tokens": 300,
    "messages": [{"role": "user", "content": "weather?"}],
    "tools": [WEATHER, TIME],
}
ARGUMENTS = '{"city": "Paris"}'
CALL = '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>"
REPLY = f'I look.\n{CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(REPLY)


@pytest.fixture
def sdk(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as sdk:
        yield sdk


def check(answer: anthropic.types.Message) -> None:
    text, weather, time = answer.content
    assert (text.type, text.text) == ("text", "I look.")
    assert (weather.type, weather.name, weather.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert (time.type, time.name, time.input) == ("tool_use", "get_time", {})
    assert weather.id != time.id
    assert (answer.stop_reason, answer.stop_sequence) == ("tool_use", None)


def test_calls(sdk: anthropic.Anthropic):
    check(sdk.messages.create(**ASK))


def test_streamed_calls(sdk: anthropic.Anthropic):
    with sdk.messages.stream(**ASK) as stream:
        events = list(stream)
        check(stream.get_final_message())
    pieces = [event.partial_json for event in events if event.type == "input_json"]
    assert "".join(pieces) == ARGUMENTS + "{}"
    assert len(pieces) > 3
    borders = [
        (event.type, event.index) for event in events if event.type in ("content_block_start", "content_block_stop")
    ]
    assert borders == [(f"content_block_{kind}", index) for index in range(3) for kind in ("start", "stop")]


def test_round_trip(sdk: anthropic.Anthropic, engine: FakeEngine):
    """The answer goes back as it came, and the tools' results after it."""
    answer = sdk.messages.create(**ASK)
    weather, time = (block for block in answer.content if block.type == "tool_use")
    engine._reply = lambda request: "Sunny."
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": weather.id, "content": [{"type": "text", "text": "sunny"}]},
        {"type": "tool_result", "tool_use_id": time.id, "content": "no clock", "is_error": True},
        {"type": "text", "text": "Well?"},
    ]
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": results},
    ]
    assert sdk.messages.create(**{**ASK, "messages": messages}).content[0].to_dict()["text"] == "Sunny."
    prompt = bytes(engine.submitted[-1].input_ids).decode()
    assert CALL in prompt
    assert prompt.endswith(
        "|user:<tool_response>\nsunny\n</tool_response>|user:<tool_response>\nError: no clock\n</tool_response>"
        "|user:Well?|assistant:"
    )


async def test_what_templates_read(client, engine: FakeEngine):
    """Conversation and tools in the form of OpenAI's chat API."""
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call>")
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Köln"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
    ]
    response = await client.post("/v1/messages", json={**ASK, "messages": messages})
    assert response.status_code == 200
    rendered, options = engine.tokenizer.rendered
    call = {"id": "t1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
    assert rendered == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain", "name": "get_weather"},
    ]
    assert [tool["function"]["name"] for tool in options["tools"]] == ["get_weather", "get_time"]
    assert options["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]


def test_tool_runner(sdk: anthropic.Anthropic, engine: FakeEngine):
    """The client's own loop runs the tool and asks again."""

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """A forecast.

        Args:
            city: Where.
        """
        return f"rain in {city}"

    engine._reply = lambda request: "Rain." if b"rain in Paris" in bytes(request.input_ids) else CALL
    runner = sdk.beta.messages.tool_runner(
        model="default",
        max_tokens=300,
        thread=False,
        tools=[get_weather],
        messages=[{"role": "user", "content": "weather?"}],
    )
    assert [message.stop_reason for message in runner] == ["tool_use", "end_turn"]
    assert len(engine.submitted) == 2


@pytest.mark.parametrize(
    ("choice", "is_forced"),
    [
        ({"type": "auto"}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "get_time"}, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, False),
    ],
)
async def test_choices(client, engine: FakeEngine, choice: dict[str, Any], is_forced: bool):
    response = await client.post("/v1/messages", json={**ASK, "tool_choice": choice})
    assert response.status_code == 200
    tag = json.loads(engine.submitted[0].sampling.structural_tag or "{}").get("format", {})
    assert (tag.get("at_least_one") is True) == is_forced
    assert bool(tag.get("stop_after_first")) == ("name" in choice or "disable_parallel_tool_use" in choice)
    if "name" in choice:
        assert ["get_time" in json.dumps(one) for one in tag["tags"]] == [True]


async def test_no_choice(client, engine: FakeEngine):
    body = (await client.post("/v1/messages", json={**ASK, "tool_choice": {"type": "none"}})).json()
    assert body["content"] == [{"type": "text", "text": REPLY}]
    assert b"get_weather" not in bytes(engine.submitted[0].input_ids)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": None, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "tools"),
        ({"tools": [{**WEATHER, "input_schema": {"type": "array"}}]}, "tools"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools.0.defer_loading"),
    ],
)
async def test_refused(client, fields: dict[str, Any], name: str):
    response = await client.post("/v1/messages", json={**ASK, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(name)


async def test_count_tokens_with_tools(client, engine: FakeEngine):
    fields = {name: value for name, value in ASK.items() if name != "max_tokens"}
    counted = (await client.post("/v1/messages/count_tokens", json=fields)).json()
    await client.post("/v1/messages", json=ASK)
    assert counted == {"input_tokens": len(engine.submitted[0].input_ids)}


async def test_call_that_is_cut(client, engine: FakeEngine):
    """A part of the arguments is no input."""
    engine._reply = lambda request: CALL
    body = (await client.post("/v1/messages", json={**ASK, "max_tokens": CALL.index("ris")})).json()
    assert body["stop_reason"] == "max_tokens"
    assert body["content"][0]["input"] == {"INVALID_JSON": '{"city": "Pa'}


@pytest.fixture
def thinker(engine: FakeEngine) -> FakeEngine:
    """Of a model that thinks."""
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call> </think>")
    engine._reply = lambda request: f"<think>\nHm, hm.\n</think>\n\n{REPLY}"
    return engine


def test_thinking(sdk: anthropic.Anthropic, thinker: FakeEngine):
    ask = {**ASK, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = sdk.messages.create(**ask)
    with sdk.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        thoughts = answer.content[0]
        assert (thoughts.type, thoughts.thinking) == ("thinking", "Hm, hm.")
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert thinker.tokenizer.rendered[1]["enable_thinking"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_that_is_not_shown(client, thinker: FakeEngine, stream: bool):
    ask = {**ASK, "thinking": {"type": "adaptive", "display": "omitted"}, "stream": stream}
    response = await client.post("/v1/messages", json=ask)
    assert response.status_code == 200
    assert '"thinking"' not in response.text
    assert "thinking_delta" not in response.text
    assert "tool_use" in response.text


async def test_thinking_is_off_unless_asked_for(client, thinker: FakeEngine):
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        await client.post("/v1/messages", json={**ASK, **fields})
        assert thinker.tokenizer.rendered[1]["enable_thinking"] is False
