"""Libraries over several APIs, as they are used: only the base URL is ours."""

from __future__ import annotations

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


class City(pydantic.BaseModel):
    """A city."""

    name: str


def test_langchain_structured_output(chat_model: ChatOpenAI, engine: FakeEngine):
    engine._reply = lambda request: '{"name": "Paris"}'
    assert chat_model.with_structured_output(City).invoke("hi") == City(name="Paris")
    assert "name" in (engine.submitted[0].sampling.json_schema or "")


def test_langchain_errors(chat_model: ChatOpenAI):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        chat_model.invoke("hi", max_tokens=5000)
