"""Libraries over several APIs, as they are used: only the base URL is ours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pydantic
import pytest

from .fakes import FakeEngine

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

HELLO = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "A forecast.", "parameters": PARAMETERS},
}


class City(pydantic.BaseModel):
    """A city."""

    name: str


# Of litellm's own types, and of how it copies them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Items? .* on TypedDict class .*ReadOnly:UserWarning",
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance:DeprecationWarning",
)


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network when it is imported
    import litellm
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    yield litellm
    connections = litellm.in_memory_llm_clients_cache
    for client in connections.cache_dict.values():
        if isinstance(client, openai.OpenAI | HTTPHandler):  # the asynchronous ones were not used
            client.close()
    connections.flush_cache()


@pytest.fixture(params=["openai", "anthropic", "ollama_chat"])
def model(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    """What litellm needs to speak to the server through one of its APIs."""
    base = url + "/v1" if request.param == "openai" else url
    return {"model": f"{request.param}/default", "api_base": base, "api_key": "unused", "num_retries": 0}


def test_litellm(litellm: Any, model: dict[str, Any]):
    answer = litellm.completion(**model, messages=HELLO, max_tokens=100, temperature=0)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len("user:hi|assistant:")
    assert answer.usage.completion_tokens == 12


def test_litellm_stream(litellm: Any, model: dict[str, Any]):
    chunks = list(litellm.completion(**model, messages=HELLO, max_tokens=100, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_litellm_tools(litellm: Any, model: dict[str, Any], engine: FakeEngine):
    """A call, and what the tool gave, there and back."""
    engine._reply = lambda request: "Rain." if b"it rains" in bytes(request.input_ids) else CALL
    ask = {**model, "max_tokens": 100, "tools": [WEATHER]}
    answer = litellm.completion(**ask, messages=HELLO).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "it rains"}
    answer = litellm.completion(**ask, messages=[*HELLO, answer.message, result]).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("Rain.", "stop")


def test_litellm_structured_output(litellm: Any, model: dict[str, Any], engine: FakeEngine):
    """Through Anthropic's API by a tool, whose call is required."""
    call = CALL.replace("get_weather", "json_tool_call").replace("city", "name")
    engine._reply = lambda request: call if request.sampling.structural_tag else '{"name": "Paris"}'
    answer = litellm.completion(**model, messages=HELLO, max_tokens=100, response_format=City)
    assert City.model_validate_json(answer.choices[0].message.content) == City(name="Paris")
    sampling = engine.submitted[0].sampling
    assert "name" in (sampling.json_schema or sampling.structural_tag or "")


def test_litellm_errors(litellm: Any, model: dict[str, Any]):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**model, messages=HELLO, max_tokens=100, temperature=-1)


@pytest.fixture
def chat_model(url: str) -> Iterator[ChatOpenAI]:
    """LangChain's model, with connections that end with the test."""
    with httpx.Client() as connections:
        yield _chat_model(url, http_client=connections)


def _chat_model(url: str, **clients: Any) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"api_key": "unused", "max_retries": 0, **clients}
    return ChatOpenAI(model="default", base_url=url + "/v1", **options)


def test_langchain(chat_model: ChatOpenAI):
    answer = chat_model.invoke("hi")
    assert answer.content == "Hello world"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == len("user:hi|assistant:")
    assert answer.usage_metadata["input_token_details"].get("cache_read") == 2


def test_langchain_stream(chat_model: ChatOpenAI):
    chunks = list(chat_model.stream("hi"))
    assert "".join(str(chunk.content) for chunk in chunks) == "Hello world"
    assert len(chunks) > 3


async def test_langchain_async(url: str):
    async with httpx.AsyncClient() as connections:
        chat_model = _chat_model(url, http_async_client=connections)
        assert (await chat_model.ainvoke("hi")).content == "Hello world"
        assert "".join([str(chunk.content) async for chunk in chat_model.astream("hi")]) == "Hello world"


def test_langchain_tools(chat_model: ChatOpenAI, engine: FakeEngine):
    engine._reply = lambda request: CALL
    with_tools = chat_model.bind_tools([WEATHER])
    answer = with_tools.invoke("weather?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    *_, streamed = itertools.accumulate(with_tools.stream("weather?"))
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [("get_weather", {"city": "Paris"})]
    engine._reply = lambda request: "Rain."
    result = {"role": "tool", "tool_call_id": call["id"], "content": "it rains"}
    assert with_tools.invoke([*HELLO, answer, result]).content == "Rain."
    assert b"it rains" in bytes(engine.submitted[-1].input_ids)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(chat_model: ChatOpenAI, engine: FakeEngine, method: Any):
    texts = {"json_schema": '{"name": "Paris"}', "function_calling": CALL.replace("get_weather", "City")}
    engine._reply = lambda request: texts[method].replace("city", "name")
    assert chat_model.with_structured_output(City, method=method).invoke("hi") == City(name="Paris")
    sampling = engine.submitted[0].sampling
    assert "name" in (sampling.json_schema or sampling.structural_tag or "")


def test_langchain_errors(chat_model: ChatOpenAI):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        chat_model.invoke("hi", max_tokens=5000)
