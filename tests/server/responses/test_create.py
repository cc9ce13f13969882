"""Responses as OpenAI's client creates and reads them, over real HTTP on a fake engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem
from sgjax_server.config import ServerConfig

from sgjax.types import FinishReason

from ..conftest import client_of
from ..fakes import FakeEngine, FakeTokenizer

URL = "/v1/responses"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "W",
    "parameters": PARAMETERS,
    "strict": False,
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
THINKS = ServerConfig(reasoning_parser="qwen3")


@pytest.fixture
async def api(url: str):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def prompt(engine: FakeEngine) -> str:
    return bytes(engine.submitted[-1].input_ids).decode()


async def test_text(api: openai.AsyncOpenAI, engine: FakeEngine):
    response = await api.responses.create(model="m", input="hi", metadata={"a": "b"}, temperature=0.5, user="me")
    assert response.output_text == "Hello world"
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.role, message.status, message.id[:4]) == ("assistant", "completed", "msg_")
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert (response.model, response.metadata, response.temperature, response.top_p) == ("fake", {"a": "b"}, 0.5, 1.0)
    assert (response.tools, response.tool_choice, response.parallel_tool_calls) == ([], "auto", True)
    assert response.text is not None
    assert response.text.to_dict() == {"format": {"type": "text"}}
    assert response.usage is not None
    assert response.usage.to_dict() == {
        "input_tokens": 18,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 16},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 30,
    }
    assert prompt(engine) == "user:hi|assistant:"
    assert engine.submitted[0].sampling.max_new_tokens is None
    assert response.id.startswith("resp_")


async def test_items_and_instructions(api: openai.AsyncOpenAI, engine: FakeEngine):
    await api.responses.create(
        model="m",
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "In Latin."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "message", "role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
    )
    assert prompt(engine) == "system:Be brief.\n\nIn Latin.|user:ab|assistant:c|user:d|assistant:"


async def test_calls_of_tools(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine._reply = lambda request: f"Let me see.\n\n{CALL}\n{CALL}"
    response = await api.responses.create(model="m", input="hi", tools=[WEATHER])
    message, first, second = response.output
    assert response.output_text == "Let me see."
    assert message.type == "message"
    assert isinstance(first, ResponseFunctionToolCall)
    assert isinstance(second, ResponseFunctionToolCall)
    assert (first.name, first.arguments, first.status) == ("get_weather", '{"city": "Ulm"}', "completed")
    assert first.call_id != second.call_id
    assert [tool.to_dict() for tool in response.tools] == [WEATHER]


async def test_results_of_tools(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call>")
    engine._reply = lambda request: CALL if "tool:" not in prompt(engine) else "Sunny."
    first = await api.responses.create(model="m", input="hi", tools=[WEATHER])
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "18 C"}
    expected = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "18 C"},
    ]
    by_id = await api.responses.create(model="m", previous_response_id=first.id, input=[result], tools=[WEATHER])
    assert by_id.output_text == "Sunny."
    assert engine.tokenizer.rendered[0] == expected
    again: Any = [{"role": "user", "content": "hi"}, call.to_dict(), result]
    await api.responses.create(model="m", input=again, tools=[WEATHER])
    assert engine.tokenizer.rendered[0] == expected


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        ("required", "required"),
        ({"type": "function", "name": "get_weather"}, "named"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}, "one"),
    ],
)
async def test_required_calls(api: openai.AsyncOpenAI, engine: FakeEngine, choice: Any, mode: str):
    engine._reply = lambda request: CALL
    other: Any = {"type": "function", "name": "other", "parameters": None, "strict": None}
    response = await api.responses.create(
        model="m", input="hi", tools=[WEATHER, other], tool_choice=choice, parallel_tool_calls=False
    )
    tag = engine.submitted[0].sampling.structural_tag
    assert tag is not None
    assert ("other" in tag) == (mode == "required")
    shown = response.tool_choice if isinstance(response.tool_choice, str) else response.tool_choice.to_dict()
    assert shown == choice
    assert not response.parallel_tool_calls


async def test_no_calls(api: openai.AsyncOpenAI, engine: FakeEngine):
    await api.responses.create(model="m", input="hi", tools=[WEATHER], tool_choice="none")
    assert prompt(engine) == "user:hi|assistant:"


async def test_reasoning(engine: FakeEngine):
    engine._reply = lambda request: "<think>Hm, hm.</think>Yes."
    async with client_of(engine, THINKS) as client:
        api = openai.AsyncOpenAI(base_url="http://test/v1", api_key="unused", http_client=client)  # type: ignore[arg-type]
        effort: Any = {"effort": "none", "summary": "auto"}
        response = await api.responses.create(
            model="m", input="hi", reasoning=effort, include=["reasoning.encrypted_content"]
        )
        thought, message = response.output
        assert isinstance(thought, ResponseReasoningItem)
        assert thought.content is not None
        assert (thought.content[0].text, thought.summary, message.type) == ("Hm, hm.", [], "message")
        assert response.output_text == "Yes."
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens == len("<think>Hm, hm.</think>")
        assert response.reasoning is not None
        assert response.reasoning.effort == "none"
        options = engine.tokenizer.rendered[1]
        assert (options["reasoning_effort"], options["enable_thinking"]) == ("none", False)
        await api.responses.create(model="m", previous_response_id=response.id, input="Why?")
        answer = engine.tokenizer.rendered[0][1]
        assert answer == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm, hm."}


async def test_schema(api: openai.AsyncOpenAI, engine: FakeEngine):
    class City(pydantic.BaseModel):
        name: str

    engine._reply = lambda request: '{"name": "Ulm"}'
    response = await api.responses.parse(model="m", input="hi", text_format=City)
    assert response.output_parsed == City(name="Ulm")
    schema = engine.submitted[0].sampling.json_schema
    assert schema is not None
    assert json.loads(schema)["properties"].keys() == {"name"}
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.to_dict()["name"] == "City"
    await api.responses.create(model="m", input="hi", text={"format": {"type": "json_object"}})
    assert engine.submitted[1].sampling.json_schema == '{"type": "object"}'


async def test_parsed_arguments(api: openai.AsyncOpenAI, engine: FakeEngine):
    class Weather(pydantic.BaseModel):
        city: str

    engine._reply = lambda request: CALL
    tools: Any = [openai.pydantic_function_tool(Weather, name="get_weather")]
    tools = [{"type": "function", **tools[0]["function"]}]
    response = await api.responses.parse(model="m", input="hi", tools=tools)
    (call,) = response.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Ulm"}


async def test_sampling(api: openai.AsyncOpenAI, engine: FakeEngine):
    extra = {"top_k": 5, "min_p": 0.1, "seed": 3, "stop": "x", "repetition_penalty": 1.1, "priority": 2}
    await api.responses.create(model="m", input="hi", max_output_tokens=7, top_p=0.9, extra_body=extra)
    (request,) = engine.submitted
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.top_p, sampling.top_k, sampling.min_p) == (7, 0.9, 5, 0.1)
    assert (sampling.seed, sampling.stop, sampling.repetition_penalty, request.priority) == (3, ("x",), 1.1, 2)


async def test_logprobs(api: openai.AsyncOpenAI):
    response = await api.responses.create(
        model="m", input="hi", max_output_tokens=2, top_logprobs=1, include=["message.output_text.logprobs"]
    )
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [token.token for token in part.logprobs] == ["H", "e"]
    assert part.logprobs[0].top_logprobs[0].token == "A"


async def test_cut_off(api: openai.AsyncOpenAI):
    response = await api.responses.create(model="m", input="hi", max_output_tokens=3)
    assert (response.status, response.output_text) == ("incomplete", "Hel")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert isinstance(response.output[0], ResponseOutputMessage)
    assert response.output[0].status == "incomplete"


async def test_aborted(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine.end = FinishReason("abort", message="out of pages")
    response = await api.responses.create(model="m", input="hi")
    assert (response.status, response.output_text) == ("failed", "Hello world")
    assert response.error is not None
    assert "out of pages" in response.error.message


async def test_empty_answer_has_a_message(api: openai.AsyncOpenAI, engine: FakeEngine):
    engine._reply = lambda request: ""
    response = await api.responses.create(model="m", input="hi")
    assert (len(response.output), response.output_text, response.status) == (1, "", "completed")


async def test_receipt(client):
    body = (await client.post(URL, json={"input": "hi", "return_receipt": True})).json()
    assert body["sgjax"]["receipt"]["completion_tokens"] == 12


ITEM = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{**ITEM, "nonsense": 1}]}, "input"),
        ({"input": "x" * 2000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]},
            },
            "tool_choice",
        ),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning": {"effort": "huge"}}, "reasoning"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input": "\ud800"}, "input"),
        ({"input": [{"id": "\ud800", "role": "user", "content": "a"}]}, "input"),
        ({"instructions": "\ud800"}, "instructions"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"text": {"format": {"type": "json_schema", "name": "\ud800", "schema": {}}}}, "text"),
        ({"tools": [{"type": "function", "name": "a", "description": "\ud800"}]}, "tools"),
    ],
)
async def test_refused(client, engine: FakeEngine, fields: dict, param: str):
    content = json.dumps({"input": "hi", **fields})  # httpx refuses a lone surrogate
    response = await client.post(URL, content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert {request.rid for request in engine.submitted} == set(engine.aborted)


async def test_bad_schema_is_refused_before_the_answer_begins(client, engine: FakeEngine):
    engine.bad_grammar = '{"type": "object"}'
    fields = {"input": "hi", "text": {"format": {"type": "json_object"}}, "stream": True}
    response = await client.post(URL, json=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "text")


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": {"effort": "high"}, "truncation": "disabled", "text": {"verbosity": "medium"}},
        {"service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "max_tool_calls": 3},
        {"store": True, "background": False, "conversation": None, "include": []},
    ],
)
async def test_harmless_fields(client, fields: dict):
    assert (await client.post(URL, json={"input": "hi", **fields})).status_code == 200
