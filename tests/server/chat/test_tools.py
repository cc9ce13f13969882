"""Tools in chat completions, on a fake engine."""

from __future__ import annotations

import functools
import json
import typing
from typing import Any

import httpx
import openai
import pydantic
import pytest
from sgjax_server.chat.constraint import Constraint
from sgjax_server.chat.parsers.parser import AnswerParser
from sgjax_server.chat.tool_formats import FORMATS, adapted, guess
from sgjax_server.chat.tools import Tool
from sgjax_server.config import ServerConfig, ToolCallParser

from sgjax.types import RequestError, SamplingParams

from ..conftest import client_of, events_of
from ..fakes import FakeEngine, FakeTokenizer
from .test_parsers import joined

URL = "/v1/chat/completions"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = {**PARAMETERS, "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "W", "parameters": PARAMETERS}}
STRICT = {"type": "function", "function": {"name": "get_time", "parameters": PARAMETERS, "strict": True}}
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"messages": HELLO, "tools": [WEATHER]}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
KNOWS_TOOLS = "{{ tools }} <tool_call>"


class Weather(pydantic.BaseModel):
    city: str


def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="unused", http_client=client, max_retries=0)


async def refused(client: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    response = await client.post(URL, json={**BODY, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


def grammar(engine: FakeEngine) -> dict[str, Any]:
    """The format that the last request must follow."""
    text = engine.submitted[-1].sampling.structural_tag
    assert text is not None
    return json.loads(text)["format"]


async def test_calls(client, engine: FakeEngine):
    engine._reply = lambda request: f"Let me see.\n\n{CALL}\n{CALL}"
    body = (await client.post(URL, json=BODY)).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "Let me see."
    first, second = message["tool_calls"]
    assert first.pop("id") != second["id"]
    assert first == {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'}}
    assert engine.submitted[0].sampling.grammar is None


async def test_stream(client, engine: FakeEngine):
    engine._reply = lambda request: f"Hm. {CALL}"
    choices = [event["choices"][0] for event in events_of(await client.post(URL, json={**BODY, "stream": True}))]
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hm."
    first, *others = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    id = first.pop("id")
    assert id.startswith("call_")
    assert first == {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert all(call.keys() == {"index", "function"} and call["index"] == 0 for call in others)
    assert "".join(call["function"]["arguments"] for call in others) == '{"city": "Ulm"}'
    assert len(others) > 5


async def test_stream_helper_of_openai(client, engine: FakeEngine):
    engine._reply = lambda request: f"{CALL}\n{CALL}"
    tools: Any = [openai.pydantic_function_tool(Weather, name="get_weather")]
    async with sdk(client).chat.completions.stream(model="m", messages=HELLO, tools=tools) as stream:
        kinds = {event.type async for event in stream}
        final = (await stream.get_final_completion()).choices[0]
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert final.finish_reason == "tool_calls"
    parsed = [call.function.parsed_arguments for call in final.message.tool_calls or []]
    assert [getattr(one, "city", None) for one in parsed] == ["Ulm", "Ulm"]


async def test_samples_are_read_apart(client, engine: FakeEngine):
    engine._reply = lambda request: CALL
    for stream in (False, True):
        response = await client.post(URL, json={**BODY, "n": 2, "stream": stream})
        assert response.text.count('"get_weather"') == 2
        assert response.text.count('"tool_calls"') >= 4


async def test_template_that_knows_tools(engine: FakeEngine):
    engine.tokenizer = FakeTokenizer(KNOWS_TOOLS)
    async with client_of(engine) as client:
        assert (await client.post(URL, json=BODY)).status_code == 200
        messages, options = engine.tokenizer.rendered
        assert (messages, options["tools"]) == (HELLO, [WEATHER])
        await client.post(URL, json={**BODY, "tool_choice": "none"})
        assert "tools" not in engine.tokenizer.rendered[1]


async def test_template_that_ignores_tools(client, engine: FakeEngine):
    history = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "12 degrees"},
    ]
    assert (await client.post(URL, json={**BODY, "messages": history})).status_code == 200
    system, user, assistant, tool = engine.tokenizer.rendered[0]
    assert system["content"].startswith("Be brief.\n\n")
    assert '{"name": "get_weather", "description": "W", "parameters": {"type": "object"' in system["content"]
    assert '<tool_call>\n{"name": "NAME", "arguments": ' in system["content"]
    assert user == HELLO[0]
    assert assistant == {"role": "assistant", "content": CALL}
    assert tool == {"role": "user", "content": "<tool_response>\n12 degrees\n</tool_response>"}
    await client.post(URL, json={"messages": history})
    assert engine.tokenizer.rendered[0][0] == history[0]


async def test_text_stays_text_without_tools(client, engine: FakeEngine):
    engine._reply = lambda request: CALL
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        message = (await client.post(URL, json={**BODY, **fields})).json()["choices"][0]["message"]
        assert message["content"] == CALL
        assert "tool_calls" not in message


async def test_required(client, engine: FakeEngine):
    fields = {"tools": [WEATHER, STRICT], "tool_choice": "required"}
    await client.post(URL, json={**BODY, **fields})
    calls = grammar(engine)
    assert calls["type"] == "tags_with_separator"
    assert (calls["at_least_one"], calls["stop_after_first"]) == (True, False)
    assert [tag["begin"] for tag in calls["tags"]] == [
        '<tool_call>\n{"name": "get_weather", "arguments": ',
        '<tool_call>\n{"name": "get_time", "arguments": ',
    ]
    assert calls["tags"][0]["content"] == {"type": "json_schema", "json_schema": CLOSED}
    await client.post(URL, json={**BODY, **fields, "parallel_tool_calls": False})
    assert grammar(engine)["stop_after_first"] is True


def test_arguments_that_are_not_named_are_not_written():
    """Unless the schema says something of them, or is put together from several."""

    def schema(parameters: dict | None) -> dict:
        return Tool(name="f", parameters=parameters).schema

    closed = {"additionalProperties": False}
    assert schema(None) == {"type": "object", "properties": {}, **closed}
    assert schema({}) == {"type": "object"}
    assert schema({"properties": {"a": {}}}) == {"type": "object", "properties": {"a": {}}, **closed}
    nested = {"items": {"anyOf": [PARAMETERS, {"type": "null"}]}}
    assert schema({"properties": {"a": nested}})["properties"]["a"] == {"items": {"anyOf": [CLOSED, {"type": "null"}]}}
    assert schema({"$defs": {"A": PARAMETERS}})["$defs"]["A"] == CLOSED
    for more in ({"additionalProperties": True}, {"patternProperties": {"^x": {}}}, {"allOf": [PARAMETERS]}):
        assert schema({**PARAMETERS, **more}) == {**PARAMETERS, **more}


async def test_named(client, engine: FakeEngine):
    choice = {"type": "function", "function": {"name": "get_time"}}
    await client.post(URL, json={**BODY, "tools": [WEATHER, STRICT], "tool_choice": choice})
    (tag,) = grammar(engine)["tags"]
    assert "get_time" in tag["begin"]
    assert grammar(engine)["stop_after_first"] is True


async def test_strict(client, engine: FakeEngine):
    await client.post(URL, json={**BODY, "tools": [WEATHER, STRICT]})
    free = grammar(engine)
    assert (free["type"], free["triggers"], free["stop_after_first"]) == ("triggered_tags", ["<tool_call>"], False)
    assert [tag["content"]["json_schema"] for tag in free["tags"]] == [{"type": "object"}, CLOSED]


async def test_one_call_at_most(client, engine: FakeEngine):
    await client.post(URL, json={**BODY, "parallel_tool_calls": False})
    assert grammar(engine)["stop_after_first"] is True


async def test_response_format_or_calls(client, engine: FakeEngine):
    await client.post(URL, json={**BODY, "response_format": {"type": "json_object"}})
    calls, answer = grammar(engine)["elements"]
    assert calls["type"] == "tags_with_separator"
    assert answer == {"type": "json_schema", "json_schema": {"type": "object"}}
    assert engine.submitted[-1].sampling.json_schema is None


async def test_conflicts_name_the_field(client, engine: FakeEngine):
    json_object = {"response_format": {"type": "json_object"}}
    assert (await refused(client, tool_choice="required", **json_object))[0] == "response_format"
    assert (await refused(client, regex="a"))[0] == "regex"
    assert (await refused(client, tools=None, tool_choice="required"))[0] == "tool_choice"
    named = {"type": "function", "function": {"name": "other"}}
    assert (await refused(client, tool_choice=named))[0] == "tool_choice"
    assert (await refused(client, tool_choice="maybe"))[0] == "tool_choice"
    assert (await refused(client, tools=[WEATHER, WEATHER]))[0] == "tools"
    assert (await refused(client, tools=[{"type": "function", "function": {"name": "a b"}}]))[0] == "tools"
    wrong = {"name": "f", "parameters": {"type": "string"}}
    assert (await refused(client, tools=[{"type": "function", "function": wrong}]))[0] == "tools"
    assert (await refused(client, tools=[{"type": "function", "function": {"name": "f", "x": 1}}]))[0] == "tools"
    assert (await refused(client, tools=[{"type": "retrieval"}]))[0] == "tools"
    long = {"name": "f", "parameters": {"type": "object", "description": "long" * 300_000}}
    fields = {"tools": [{"type": "function", "function": long}], "tool_choice": "required"}
    assert (await refused(client, **fields))[0] == "tools"
    param, message = await refused(client, tool_choice="required", min_tokens=2)
    assert param == "min_tokens"
    assert "combined with tools" in message
    assert engine.submitted == []


async def test_no_tools(engine: FakeEngine):
    async with client_of(engine, ServerConfig(tool_call_parser="none")) as client:
        param, message = await refused(client)
        assert param == "tools"
        assert "--tool-call-parser none" in message
    engine.tokenizer = FakeTokenizer("{{ tools }} in a way of its own")
    async with client_of(engine) as client:
        assert (await refused(client))[0] == "tools"
    async with client_of(engine, ServerConfig(tool_call_parser="qwen25")) as client:
        assert (await client.post(URL, json=BODY)).status_code == 200
    async with client_of(engine, ServerConfig(tool_call_parser="pythonic")) as client:
        assert (await client.post(URL, json=BODY)).status_code == 200
        assert (await refused(client, tool_choice="required"))[0] == "tool_choice"


async def test_marks_that_are_special_tokens(engine: FakeEngine):
    """They are shown to the parser, and the others still hidden."""
    engine.tokenizer = FakeTokenizer("{{ tools }} [TOOL_CALLS]", special=["[TOOL_CALLS]", "<|pad|>"])
    engine._reply = lambda request: 'Hm<|pad|>.[TOOL_CALLS] [{"name": "get_weather", "arguments": {}}]'
    async with client_of(engine) as client:
        message = (await client.post(URL, json=BODY)).json()["choices"][0]["message"]
        assert engine.submitted[-1].sampling.skip_special_tokens is False
        assert message["content"] == "Hm."
        (call,) = message["tool_calls"]
        assert len(call["id"]) == 9
        await client.post(URL, json={"messages": HELLO})
        assert engine.submitted[-1].sampling.skip_special_tokens is True


V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
TEMPLATES = [
    (f"{V3} ```json", "deepseekv3"),
    ("<｜tool▁call▁begin｜>", "deepseekv31"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ('{"name": function name, "parameters": ', "llama3"),
    ("<|python_tag|>", "llama3"),
    ("[func_name1(a=1)]", "pythonic"),
    ("<tool_call><function=NAME>", None),
    ("tools in a way of its own", None),
]


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_format_is_guessed_from_the_template(template: str, name: str | None):
    assert guess(template) == (None if name is None else FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_a_written_call_is_read_back(name: str):
    for written in (FORMATS[name], adapted(FORMATS[name], "[ARGS]")):
        parser = AnswerParser([functools.partial(written.parse, tools={"f"})])
        text = written.call("f", '{"x": 1}')
        assert joined(parser.feed(text) + parser.finish()) == [("f", '{"x": 1}')]
        if written.begin is not None:
            assert any((written.opening + written.begin_of("f")).startswith(trigger) for trigger in written.triggers)


def test_flags_are_the_formats():
    assert set(FORMATS) | {"auto", "none"} == set(typing.get_args(ToolCallParser))


def test_refusals_name_what_the_request_holds():
    constraint = Constraint(SamplingParams(), "none", [Tool(name="f"), Tool(name="g")], is_made=True)
    path = "#/format/elements/1/tags/1/content/json_schema"
    found = constraint.explain(RequestError("structural_tag", f"{path}/not: not supported"))
    assert (found.field, found.message) == ("tools", "the parameters of 'g': #/not: not supported")
    found = constraint.explain(RequestError("structural_tag", "#/format/elements/1/json_schema: too complex"))
    assert (found.field, found.message) == ("json_schema", "#: too complex")
    assert constraint.explain(RequestError("structural_tag", "too complex")).field == "tools"
    own = Constraint(SamplingParams(structural_tag="{}"), "none")
    assert own.explain(RequestError("structural_tag", "too complex")).field == "structural_tag"
