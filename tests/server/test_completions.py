"""/v1/completions on a fake engine."""

from __future__ import annotations

import pytest

from .conftest import events_of
from .fakes import FakeEngine

URL = "/v1/completions"


async def test_answer(client, engine: FakeEngine):
    body = (await client.post(URL, json={"model": "m", "prompt": "abc", "max_tokens": 5})).json()
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert choice == {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length", "matched_stop": None}
    assert body["usage"]["total_tokens"] == 8
    assert bytes(engine.submitted[0].input_ids) == b"abc"


async def test_default_length_is_16(client, engine: FakeEngine):
    await client.post(URL, json={"prompt": "abc"})
    await client.post(URL, json={"prompt": "abc", "max_tokens": None})
    assert [request.sampling.max_new_tokens for request in engine.submitted] == [16, None]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
async def test_prompt_forms(client, engine: FakeEngine, prompt, expected):
    body = (await client.post(URL, json={"prompt": prompt, "n": 2, "echo": True})).json()
    assert [bytes(request.input_ids) for request in engine.submitted] == expected
    assert len({request.rid for request in engine.submitted}) == len(expected)
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    echoed = [text.decode() + "Hello world" for text in expected for _ in range(2)]
    assert [choice["text"] for choice in body["choices"]] == echoed


async def test_echo_with_logprobs(client, engine: FakeEngine):
    body = {"prompt": "ab", "max_tokens": 2, "echo": True, "logprobs": 1}
    logprobs = (await client.post(URL, json=body)).json()["choices"][0]["logprobs"]
    assert engine.submitted[0].logprob_start_len == 0
    assert logprobs == {
        "tokens": ["a", "b", "H", "e"],
        "token_logprobs": [None, -0.5, -0.5, -0.5],
        "text_offset": [0, 1, 2, 3],
        "top_logprobs": [None, {"A": -1.0, "b": -0.5}, {"A": -1.0, "H": -0.5}, {"A": -1.0, "e": -0.5}],
    }


async def test_echo_alone_computes_only_the_prompt(client):
    body = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = (await client.post(URL, json=body)).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]


async def test_stream_of_a_batch(client):
    body = {
        "prompt": ["a", "bc"],
        "stream": True,
        "echo": True,
        "logprobs": 0,
        "stream_options": {"include_usage": True},
    }
    *events, last = events_of(await client.post(URL, json=body))
    for index, prompt in enumerate(["a", "bc"]):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        text = "".join(choice["text"] for choice in choices)
        assert text == prompt + "Hello world"
        tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert [text[at] for at in offsets[:-1]] == tokens[:-1]  # the last token is EOS, which has no text here
        assert choices[-1]["finish_reason"] == "stop"
    assert last["usage"]["prompt_tokens"] == 3
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
