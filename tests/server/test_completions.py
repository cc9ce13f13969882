"""/v1/completions on a fake engine."""

from __future__ import annotations

import dataclasses

import pytest
from openai import AsyncOpenAI, BadRequestError

from sgjax.types import OutputDelta, Request

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


async def test_openais_client(url: str, engine: FakeEngine):
    """All forms of prompts, samples, the prompt and its log-probabilities, whole and streamed."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        prompts: list = ["ab", ["a", "b"], [97, 98], [[97], [98]]]
        for prompt in prompts:
            answer = await client.completions.create(model="m", prompt=prompt, n=2, max_tokens=2, echo=True, logprobs=1)
            texts = [choice.text for choice in answer.choices]
            assert texts == (["abHe"] * 2 if prompt in ("ab", [97, 98]) else ["aHe", "aHe", "bHe", "bHe"])
            assert answer.usage is not None
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2 * len(texts))
            for choice in answer.choices:
                assert choice.logprobs is not None
                assert choice.logprobs.tokens == list(choice.text)
                assert choice.logprobs.text_offset == list(range(len(choice.text)))
            chunks = await client.completions.create(
                model="m", prompt=prompt, n=2, max_tokens=2, echo=True, logprobs=1, stream=True
            )
            streamed = [""] * len(texts)
            async for chunk in chunks:
                streamed[chunk.choices[0].index] += chunk.choices[0].text
            assert streamed == texts


class Ranked(FakeEngine):
    """Sample i is `SCORES[i]` likely per token, and begins with i."""

    SCORES = (-2.0, -0.5, -3.0, -1.0)

    def _delta(self, request: Request, index: int, reply: list[int], position: int) -> OutputDelta:
        delta = super()._delta(request, index, reply, position)
        if delta.logprobs is not None:
            delta.logprobs = [dataclasses.replace(one, logprob=self.SCORES[index]) for one in delta.logprobs]
        if position == 0:
            delta.text = f"{index}{delta.text}"
        return delta


class TestBestOf:
    @pytest.fixture
    def engine(self) -> FakeEngine:
        return Ranked()

    @pytest.fixture
    async def openai(self, url: str):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client

    async def test_the_likeliest_are_the_answer(self, openai: AsyncOpenAI, engine: FakeEngine):
        answer = await openai.completions.create(model="m", prompt=["a", "bc"], n=2, best_of=4)
        assert [choice.text for choice in answer.choices] == ["1Hello world", "3Hello world"] * 2
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.logprobs for choice in answer.choices] == [None] * 4
        assert {request.sampling.n for request in engine.submitted} == {4}
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2 * 4 * 12)

    async def test_with_logprobs_and_echo(self, openai: AsyncOpenAI):
        answer = await openai.completions.create(model="m", prompt="ab", best_of=3, logprobs=1, echo=True, max_tokens=2)
        (choice,) = answer.choices
        assert choice.text == "ab1He"
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]

    async def test_echo_alone_asks_for_no_logprobs_of_the_prompt(self, openai: AsyncOpenAI, engine: FakeEngine):
        answer = await openai.completions.create(model="m", prompt="ab", best_of=2, echo=True)
        assert answer.choices[0].text == "ab1Hello world"
        assert engine.submitted[0].logprob_start_len == -1

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"best_of": 2, "n": 3}, "best_of"),
            ({"best_of": 2, "stream": True}, "best_of"),
            ({"best_of": 21}, "best_of"),
            ({"suffix": "the end"}, "suffix"),
        ],
    )
    async def test_refused(self, openai: AsyncOpenAI, fields: dict, param: str):
        with pytest.raises(BadRequestError) as refused:
            await openai.completions.create(model="m", prompt="a", **fields)
        assert refused.value.param == param

    async def test_as_many_as_asked_for_may_be_streamed(self, openai: AsyncOpenAI, engine: FakeEngine):
        stream = await openai.completions.create(model="m", prompt=[97], n=2, best_of=2, stream=True, suffix="")
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["0Hello world", "1Hello world"]
        assert not engine.submitted[0].return_logprob
