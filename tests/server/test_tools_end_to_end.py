"""Tools on the embedded model, which was never taught to call any, with the official `openai` client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import openai
import pytest

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "A forecast.", "parameters": PARAMETERS},
}
NOTHING = {"type": "function", "function": {"name": "do_nothing"}}
ASK = [{"role": "user", "content": "What is the weather in Paris, in celsius, for the next 3 days?"}]
COMMON = {"model": "default", "messages": ASK, "temperature": 0, "max_tokens": 120}


pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture(scope="module")
def client(embedded_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=embedded_url + "/v1", api_key="unused", max_retries=0, timeout=300) as client:
        yield client


def check_call(call, name: str = "get_weather") -> None:
    assert (call.type, call.function.name) == ("function", name)
    if name == "get_weather":
        jsonschema.validate(json.loads(call.function.arguments), {**PARAMETERS, "additionalProperties": False})
    else:
        assert json.loads(call.function.arguments) == {}


def test_required(client: openai.OpenAI):
    answer = client.chat.completions.create(
        **COMMON, tools=[WEATHER, NOTHING], tool_choice="required", parallel_tool_calls=False
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    check_call(call, call.function.name)


def test_named_and_streamed(client: openai.OpenAI):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(**COMMON, tools=[NOTHING, WEATHER], tool_choice=choice) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    (call,) = final.message.tool_calls or []
    check_call(call)
    assert "".join(pieces) == call.function.arguments
    assert len(pieces) > 3


def test_several(client: openai.OpenAI):
    """Whatever comes within the budget are calls, one after the other."""
    answer = client.chat.completions.create(**COMMON, tools=[NOTHING, WEATHER], tool_choice="required")
    message = answer.choices[0].message
    assert not message.content
    *whole, last = message.tool_calls or []
    for call in whole:
        check_call(call, call.function.name)
    if answer.choices[0].finish_reason == "tool_calls":
        check_call(last, last.function.name)


def test_results_go_back(client: openai.OpenAI):
    first = client.chat.completions.create(**COMMON, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    history = [*ASK, message, {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    answer = client.chat.completions.create(**{**COMMON, "messages": history, "max_tokens": 8}, tools=[WEATHER])
    assert answer.choices[0].message.content


def test_auto_without_strict_is_free(client: openai.OpenAI):
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(**{**COMMON, "messages": ask, "max_tokens": 16}, tools=[WEATHER])
    assert answer.choices[0].message.content


def test_strict_text_or_call(client: openai.OpenAI):
    """Free text, or calls that follow the schema."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    answer = client.chat.completions.create(**COMMON, tools=[strict])
    for call in answer.choices[0].message.tool_calls or []:
        if answer.choices[0].finish_reason == "tool_calls":
            check_call(call)


def test_calls_or_the_response_format(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        **COMMON,
        tools=[WEATHER],
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "ok", "schema": schema}},
    )
    message = answer.choices[0].message
    if message.tool_calls:
        check_call(message.tool_calls[0])
    else:
        jsonschema.validate(json.loads(message.content or ""), schema)


@pytest.mark.parametrize("stream", [False, True])
def test_schema_of_a_tool_is_refused_by_its_name(client: openai.OpenAI, stream: bool):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**COMMON, tools=[tool], tool_choice="required", stream=stream)
    assert caught.value.param == "tools"
    assert "the parameters of 'f': #/properties/a/not: not supported" in caught.value.message
