"""Reasoning in chat completions, on a fake engine."""

from __future__ import annotations

import json

import pytest
from sgjax_server.chat.thinking import Thinking, count_reasoning, thinking
from sgjax_server.config import ServerConfig

from ..conftest import client_of, events_of
from ..fakes import FakeEngine, FakeTokenizer

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
THOUGHT = "<think>\nI see.\n</think>\n\nYes."
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(THOUGHT)
    engine.tokenizer = FakeTokenizer("{{ tools }} <tool_call> </think> {{ enable_thinking }}")
    return engine


async def test_answer(client, engine: FakeEngine):
    message = (await client.post(URL, json={"messages": HELLO})).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("I see.", "Yes.")
    body = {"messages": HELLO, "separate_reasoning": False}
    message = (await client.post(URL, json=body)).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (None, THOUGHT)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"separate_reasoning": False}, {"n": 2}])
async def test_reasoning_is_counted(client, engine: FakeEngine, fields: dict):
    body = {"messages": HELLO, "stream_options": {"include_usage": True}, **fields}
    response = await client.post(URL, json=body)
    answer = events_of(response)[-1] if body.get("stream") else response.json()
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": body.get("n", 1) * len("<think>\nI see.\n</think>")}


async def test_stream(client, engine: FakeEngine):
    body = {"messages": HELLO, "stream": True, "logprobs": True}
    choices = [event["choices"][0] for event in events_of(await client.post(URL, json=body))]
    thoughts = [choice["delta"]["reasoning_content"] for choice in choices if "reasoning_content" in choice["delta"]]
    assert "".join(thoughts) == "I see."
    assert len(thoughts) > 2
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Yes."
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == len(THOUGHT) + 1
    choices = [
        event["choices"][0] for event in events_of(await client.post(URL, json={**body, "stream_reasoning": False}))
    ]
    assert [c["delta"]["reasoning_content"] for c in choices if "reasoning_content" in c["delta"]] == ["I see."]


async def test_reasoning_then_a_call(client, engine: FakeEngine):
    engine._reply = lambda request: '<think>Hm</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    (choice,) = (await client.post(URL, json={"messages": HELLO, "tools": TOOLS})).json()["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm", None)
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


async def test_flags(engine: FakeEngine):
    async with client_of(engine, ServerConfig(reasoning_parser="none")) as client:
        message = (await client.post(URL, json={"messages": HELLO})).json()["choices"][0]["message"]
        assert message["content"] == THOUGHT
    engine._reply = lambda request: "I see.</think>Yes."
    async with client_of(engine, ServerConfig(reasoning_parser="deepseek-r1")) as client:
        message = (await client.post(URL, json={"messages": HELLO})).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("I see.", "Yes.")


async def test_a_grammar_leaves_room_for_reasoning(client, engine: FakeEngine):
    def format_of_last() -> dict:
        return json.loads(engine.submitted[-1].sampling.structural_tag or "")["format"]

    schema = {"type": "json_schema", "json_schema": {"type": "object"}}
    body = {"messages": HELLO, "response_format": {"type": "json_object"}}
    await client.post(URL, json=body)
    first, second = format_of_last()["elements"]
    assert [part["type"] for part in first["elements"]] == ["tag", "const_string", "json_schema"]
    assert second == schema
    continued = {**body, "messages": [*HELLO, {"role": "assistant", "content": "<think>So"}]}
    await client.post(URL, json={**continued, "continue_final_message": True})
    thoughts, _, answer = format_of_last()["elements"]
    assert (thoughts["begin"], thoughts["end"], answer) == ("", "</think>", schema)
    await client.post(URL, json={"messages": HELLO, "tools": TOOLS, "tool_choice": "required"})
    assert format_of_last()["elements"][1]["type"] == "tags_with_separator"


async def test_other_grammars_leave_none(client, engine: FakeEngine):
    message = (await client.post(URL, json={"messages": HELLO, "regex": ".*"})).json()["choices"][0]["message"]
    assert message["content"] == THOUGHT


@pytest.mark.parametrize(
    ("parser", "prompt", "expected"),
    [
        ("qwen3", "assistant\n", "optional"),
        ("qwen3", "assistant\n<think>\n", "open"),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", "none"),
        ("deepseek-r1", "assistant\n", "open"),
        ("deepseek-r1", "assistant</think>", "none"),
        (None, "assistant\n<think>\n", "none"),
    ],
)
def test_prompt_decides(parser, prompt: str, expected: str):
    tokenizer = FakeTokenizer()
    found = thinking(parser, tokenizer, tokenizer.encode(prompt), HELLO, continues=False)  # type: ignore[arg-type]
    assert found == expected


class _WordTokenizer:
    """Tokens of several characters, so that a mark ends inside of one."""

    WORDS = ("<think>", "Hm.", "</", "think>", "Yes", "k>No", " ")

    def token_bytes(self, token_id: int) -> bytes:
        return self.WORDS[token_id].encode()


@pytest.mark.parametrize(
    ("expected", "output", "count"),
    [
        ("none", "<think> Hm. </ think> Yes", 0),
        ("optional", "Yes Hm.", 0),
        ("optional", "", 0),
        ("optional", "<think> Hm. </ think> Yes", 4),
        ("optional", "<think> Hm. Yes", 3),
        ("open", "Hm. </ think> Yes </ think>", 3),
        ("open", "</ think>", 2),
        ("open", "", 0),
    ],
)
def test_count(expected: Thinking, output: str, count: int):
    tokenizer = _WordTokenizer()
    ids = [tokenizer.WORDS.index(word) for word in output.split()]
    assert count_reasoning(expected, tokenizer, ids) == count  # type: ignore[arg-type]
