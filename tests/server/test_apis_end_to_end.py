"""Anthropic's and Ollama's APIs on the embedded model, with their official clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import jsonschema
import ollama
import pydantic
import pytest

PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
ASK: dict[str, Any] = {"model": "default", "max_tokens": 100, "messages": PARIS, "extra_body": {"temperature": 0}}
GREEDY = {"temperature": 0}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.usefixtures("nothing_leaks")


class City(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    capital: Literal["Paris", "London", "Rome"]
    is_large: bool


@pytest.fixture
def claude(embedded_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=embedded_url, api_key="unused", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture
def llama(embedded_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=embedded_url, timeout=300) as client:
        yield client


def test_messages(claude: anthropic.Anthropic):
    for _ in range(2):
        answer = claude.messages.create(**ASK)
        assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": ANSWER}]
        assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 8)
    usage = answer.usage
    assert (usage.cache_read_input_tokens or 0) >= 16
    fields = {"model": "default", "messages": PARIS}
    assert claude.messages.count_tokens(**fields).input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_messages_stream(claude: anthropic.Anthropic):
    with claude.messages.stream(**ASK, stop_sequences=[" Paris"]) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == "The capital of France is"
    assert len(texts) > 3
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", " Paris")


def test_messages_that_continue(claude: anthropic.Anthropic):
    messages = [*PARIS, {"role": "assistant", "content": "The capital of"}]
    answer = claude.messages.create(**{**ASK, "messages": messages})
    assert answer.content[0].to_dict()["text"] == " France is Paris."


def test_messages_by_a_schema(claude: anthropic.Anthropic):
    answer = claude.messages.parse(**ASK, output_format=City)
    assert answer.parsed_output is not None
    assert answer.parsed_output.capital == "Paris"


@pytest.mark.parametrize("stream", [False, True])
def test_messages_with_a_call(claude: anthropic.Anthropic, stream: bool):
    tool: Any = {"name": "forecast", "description": "The weather.", "input_schema": PARAMETERS}
    ask = {**ASK, "tools": [tool], "tool_choice": {"type": "tool", "name": "forecast"}}
    if stream:
        with claude.messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**ask)
    (call,) = answer.content
    assert call.type == "tool_use"
    assert (call.name, answer.stop_reason) == ("forecast", "tool_use")
    jsonschema.validate(call.input, PARAMETERS)


def test_ollama_chat(llama: ollama.Client):
    answer = llama.chat(model="smollm2", messages=PARIS, options=GREEDY)
    assert answer.message.content == ANSWER
    assert (answer.eval_count, answer.done_reason) == (8, "stop")
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(part is not None and part >= 0 for part in parts)
    assert abs(sum(part or 0 for part in parts) - (answer.total_duration or 0)) <= 3
    *pieces, last = llama.chat(model="smollm2:135m", messages=PARIS, options=GREEDY, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == ANSWER
    assert (last.done, last.eval_count) == (True, 8)


def test_ollama_generate(llama: ollama.Client):
    assert llama.generate(model="smollm2", prompt=PARIS[0]["content"], options=GREEDY).response == ANSWER
    options = {**GREEDY, "num_predict": 2}
    raw = llama.generate(model="smollm2", prompt="The capital of France is", raw=True, options=options)
    assert (raw.response, raw.done_reason) == (" Paris.", "length")


def test_ollama_by_a_schema(llama: ollama.Client):
    answer = llama.chat(model="smollm2", messages=PARIS, options=GREEDY, format=City.model_json_schema())
    assert City.model_validate_json(answer.message.content or "").capital == "Paris"


def test_ollama_models(llama: ollama.Client):
    (model,) = llama.list().models
    shown = llama.show(model.model or "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 1024
    assert shown.details is not None
    assert (shown.details.family, shown.details.quantization_level) == ("llama", "F32")
    assert shown.capabilities == ["completion", "tools"]
