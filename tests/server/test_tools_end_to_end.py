"""Tools on the embedded model, which was never taught to call any, with the official `openai` client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import openai
import pytest

import sgjax

from ..serving import served

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "A forecast.", "parameters": PARAMETERS},
}
NOTHING = {"type": "function", "function": {"name": "do_nothing"}}
ASK = [{"role": "user", "content": "What is the weather in Paris, in celsius, for the next 3 days?"}]
COMMON = {"model": "default", "messages": ASK, "temperature": 0, "max_tokens": 120}


@pytest.fixture(scope="module")
def client(embedded_model_path: Path) -> Iterator[openai.OpenAI]:
    with (
        sgjax.Engine(
            str(embedded_model_path),
            context_length=1024,
            max_running_requests=4,
            max_total_tokens=4096,
            chunked_prefill_size=256,
            skip_warmup=True,
        ) as engine,
        served(engine) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0, timeout=300) as client,
    ):
        yield client


def check_call(call, name: str = "get_weather") -> None:
    assert (call.type, call.function.name) == ("function", name)
    if name == "get_weather":
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
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
