"""Tools and thinking in Ollama's API, on a fake engine that writes Hermes' format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from .fakes import FakeEngine, FakeTokenizer

HELLO: list[Any] = [{"role": "user", "content": "weather?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
REPLY = f'I look.\n{CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'


def get_weather(city: str) -> str:
    """A forecast.

    Args:
      city: Where.
    """
    return f"rain in {city}"


def get_time() -> str:
    """The time."""
    return "noon"


TOOLS = [get_weather, get_time]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(REPLY)


@pytest.fixture
def sdk(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url) as sdk:
        yield sdk


def calls_of(message: ollama.Message) -> list[tuple[str, dict[str, Any]]]:
    return [(call.function.name, dict(call.function.arguments)) for call in message.tool_calls or []]


def test_calls(sdk: ollama.Client):
    answer = sdk.chat(model="fake", messages=HELLO, tools=TOOLS)
    assert answer.message.content == "I look."
    assert calls_of(answer.message) == [("get_weather", {"city": "Paris"}), ("get_time", {})]
    assert answer.done_reason == "stop"


def test_streamed_calls(sdk: ollama.Client):
    """Text comes while it is written, every call in one piece."""
    *parts, last = sdk.chat(model="fake", messages=HELLO, tools=TOOLS, stream=True)
    assert "".join(part.message.content or "" for part in parts) == "I look."
    with_calls = [part for part in parts if part.message.tool_calls]
    assert [calls_of(part.message) for part in with_calls] == [[("get_weather", {"city": "Paris"})], [("get_time", {})]]
    assert with_calls == parts[-2:]
    assert last.done
    assert not last.message.tool_calls


def test_round_trip(sdk: ollama.Client, engine: FakeEngine):
    """As Ollama's documentation has it: results name their tools, and calls have no ids."""
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call>")
    messages = [*HELLO, sdk.chat(model="fake", messages=HELLO, tools=TOOLS).message]
    tools = {"get_weather": get_weather, "get_time": get_time}
    for name, arguments in calls_of(messages[-1]):
        messages.append({"role": "tool", "tool_name": name, "content": tools[name](**arguments)})
    engine._reply = lambda request: "Rain."
    assert sdk.chat(model="fake", messages=messages, tools=TOOLS).message.content == "Rain."
    rendered, options = engine.tokenizer.rendered
    called = rendered[1]["tool_calls"]
    assert [call["function"] for call in called] == [
        {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"name": "get_time", "arguments": "{}"},
    ]
    assert rendered[2:] == [
        {"role": "tool", "content": "rain in Paris", "name": "get_weather", "tool_call_id": called[0]["id"]},
        {"role": "tool", "content": "noon", "name": "get_time", "tool_call_id": called[1]["id"]},
    ]
    assert [tool["function"]["name"] for tool in options["tools"]] == ["get_weather", "get_time"]


async def test_results_find_their_calls(client, engine: FakeEngine):
    """By id, else by name, else in order."""
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call>")

    def call(name: str, **fields: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}, **fields}

    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call("f"), call("g"), call("f"), call("g", id="mine")]},
        {"role": "tool", "content": "1", "tool_call_id": "mine"},
        {"role": "tool", "content": "2", "tool_name": "g"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "tool", "content": "5", "tool_name": "h"},
    ]
    assert (await client.post("/api/chat", json={"messages": messages})).status_code == 200
    rendered, _ = engine.tokenizer.rendered
    first_f, first_g, second_f, last_g = (called["id"] for called in rendered[1]["tool_calls"])
    assert last_g == "mine"
    assert len({first_f, first_g, second_f}) == 3
    assert [(result["name"], result["tool_call_id"]) for result in rendered[2:]] == [
        ("g", "mine"),
        ("g", first_g),
        ("f", first_f),
        ("f", second_f),
        ("h", ""),
    ]


def test_thinking(sdk: ollama.Client, engine: FakeEngine):
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call> </think>")
    engine._reply = lambda request: "<think>\nHm, hm.\n</think>\n\nYes."
    answer = sdk.chat(model="fake", messages=HELLO, think=True)
    assert (answer.message.thinking, answer.message.content) == ("Hm, hm.", "Yes.")
    assert engine.tokenizer.rendered[1]["enable_thinking"] is True
    parts = list(sdk.chat(model="fake", messages=HELLO, think="low", stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "Hm, hm."
    assert "".join(part.message.content or "" for part in parts) == "Yes."
    assert engine.tokenizer.rendered[1]["reasoning_effort"] == "low"
    generated = sdk.generate(model="fake", prompt="weather?", think=False)
    assert (generated.thinking, generated.response) == ("Hm, hm.", "Yes.")
    assert engine.tokenizer.rendered[1]["enable_thinking"] is False
    raw = sdk.generate(model="fake", prompt="weather?", raw=True)
    assert raw.response == "<think>\nHm, hm.\n</think>\n\nYes."


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        ("{{ messages }}", ["completion", "tools"]),  # described in the prompt
        ("{{ tools }}", ["completion"]),  # in a way that is not known
        ("{{ tools }} <tool_call> </think>", ["completion", "tools", "thinking"]),
    ],
)
def test_capabilities(sdk: ollama.Client, engine: FakeEngine, template: str, capabilities: list[str]):
    engine.tokenizer = FakeTokenizer(template)
    assert sdk.show("fake").capabilities == capabilities
