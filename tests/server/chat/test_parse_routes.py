"""/parse_function_call and /separate_reasoning."""

from __future__ import annotations

import pytest

from ..conftest import client_of
from ..fakes import FakeEngine, FakeTokenizer

TOOLS = [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]
CALLS = [{"tool_index": 0, "name": "g", "parameters": '{"x": 1}'}, {"tool_index": 1, "name": "f", "parameters": "{}"}]


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (None, 'Hm.\n<tool_call>{"name": "g", "arguments": {"x": 1}}</tool_call><tool_call>{"name": "f"}</tool_call>'),
        ("mistral", 'Hm. [TOOL_CALLS] [{"name": "g", "arguments": {"x": 1}}, {"name": "f", "arguments": {}}]'),
        ("pythonic", "Hm. [g(x=1), f()]"),
    ],
)
async def test_function_calls(client, parser: str | None, text: str):
    response = await client.post(
        "/parse_function_call", json={"text": text, "tools": TOOLS, "tool_call_parser": parser}
    )
    assert response.json() == {"normal_text": "Hm.", "calls": CALLS}


async def test_reasoning(engine: FakeEngine):
    url = "/separate_reasoning"
    body = {"text": "I see.</think>Yes.", "reasoning_parser": "deepseek-r1"}
    apart = {"reasoning_text": "I see.", "text": "Yes."}
    engine.tokenizer = FakeTokenizer("</think>")
    async with client_of(engine) as client:
        assert (await client.post(url, json=body)).json() == apart
        assert (await client.post(url, json={"text": "<think>I see.</think>Yes."})).json() == apart
        whole = {"reasoning_text": "", "text": body["text"]}
        assert (await client.post(url, json={**body, "reasoning_parser": "qwen3"})).json() == whole


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/parse_function_call", {"text": "a", "tools": TOOLS, "tool_call_parser": "gpt"}, "tool_call_parser"),
        ("/parse_function_call", {"text": "a", "tools": TOOLS, "tool_call_parser": "none"}, "tool_call_parser"),
        ("/parse_function_call", {"text": "a"}, "tools"),
        ("/separate_reasoning", {"text": "a"}, "reasoning_parser"),
        ("/separate_reasoning", {"text": "a", "reasoning_parser": "gpt"}, "reasoning_parser"),
        ("/separate_reasoning", {"reasoning_parser": "qwen3"}, "text"),
    ],
)
async def test_refusals(client, url: str, body: dict, param: str):
    response = await client.post(url, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
