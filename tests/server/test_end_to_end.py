"""The embedded model over real HTTP, with the official `openai` client."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx
import openai
import pydantic
import pytest
from prometheus_client.parser import text_string_to_metric_families

import sgjax

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture
def engine(embedded_engine: sgjax.Engine) -> sgjax.Engine:
    return embedded_engine


@pytest.fixture
def url(embedded_url: str) -> str:
    return embedded_url


@pytest.fixture(scope="module")
def client(embedded_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=embedded_url + "/v1", api_key="unused", max_retries=0, timeout=300) as client:
        yield client


def test_chat(client: openai.OpenAI):
    answer = client.chat.completions.create(model="default", messages=PARIS, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    again = client.chat.completions.create(model="default", messages=PARIS, temperature=0)
    assert again.choices[0].message.content == ANSWER
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_chat_stream(client: openai.OpenAI):
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="default", messages=PARIS, temperature=0, stream=True, stream_options=options
    )
    *chunks, last = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(text or "" for text in texts) == ANSWER
    assert len(texts) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens == 8


def test_chat_logprobs(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="default", messages=PARIS, temperature=0, max_tokens=3, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert [token.token for token in tokens] == ["The", " capital", " of"]
    for token in tokens:
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob
        values = [one.logprob for one in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5


def test_samples_are_reproducible_and_differ(client: openai.OpenAI):
    def draw() -> list[str | None]:
        answer = client.chat.completions.create(model="default", messages=PARIS, n=3, seed=7, max_tokens=12)
        return [choice.message.content for choice in answer.choices]

    first = draw()
    assert len(set(first)) > 1
    assert draw() == first


def test_completion_and_prompt_logprobs(client: openai.OpenAI):
    answer = client.completions.create(
        model="default", prompt="The capital of France is", temperature=0, max_tokens=2, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text == "The capital of France is Paris."
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["The", " capital", " of", " France", " is", " Paris", "."]
    values = choice.logprobs.token_logprobs or []
    assert values[0] is None
    assert all(value is not None and value < 0 for value in values[1:])


def test_completion_of_token_ids(client: openai.OpenAI, engine: sgjax.Engine):
    prompts = ["The capital of France is", "One, two, three,"]
    ids = [engine.tokenizer.encode(prompt) for prompt in prompts]
    by_ids = client.completions.create(model="default", prompt=ids, temperature=0, max_tokens=4)
    by_text = client.completions.create(model="default", prompt=prompts, temperature=0, max_tokens=4)
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in by_text.choices]


def test_stop_string_is_cut(client: openai.OpenAI):
    answer = client.chat.completions.create(model="default", messages=PARIS, temperature=0, stop=[" Paris"])
    (choice,) = answer.choices
    assert choice.message.content == "The capital of France is"
    assert choice.finish_reason == "stop"
    assert choice.model_extra == {"matched_stop": " Paris"}


def test_errors_name_the_parameter(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=PARIS, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="default", prompt="a " * 2000)
    assert refused.value.param == "prompt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    assert [model.id for model in client.models.list()] == [client.models.retrieve("default").id]


class City(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    capital: Literal["Paris", "London", "Rome"]
    is_large: bool


CITY = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema(), "strict": True}}
NO_SCHEMA = {"type": "object", "properties": {"a": {"type": "nonsense"}}}


def test_answer_by_a_schema(client: openai.OpenAI):
    answer = client.chat.completions.parse(model="default", messages=PARIS, temperature=0, response_format=City)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.parsed == City(capital="Paris", is_large=choice.message.parsed.is_large)


def test_stream_by_a_schema(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="default", messages=PARIS, temperature=1, seed=1, stream=True, response_format=CITY
    )
    chunks = list(stream)
    City.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_schema_that_is_refused(client: openai.OpenAI, stream: bool):
    """Its refusal decides the status, also of a stream, though the schema is compiled after the request is taken."""
    bad = {"type": "json_schema", "json_schema": {"name": "bad", "schema": NO_SCHEMA}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=PARIS, stream=stream, response_format=bad)
    assert refused.value.param == "response_format"
    assert "nonsense" in refused.value.message


def test_grammars_of_a_native_batch(url: str):
    grammars = [
        {"regex": "(Paris|Rome), [0-9]{2}"},
        {"choices": ["Paris", "Rome"]},
        {"json_schema": {"type": "object"}},
        {},
    ]
    body = {
        "text": ["The capital of France is"] * len(grammars),
        "sampling_params": [{"temperature": 0, "max_new_tokens": 12, **grammar} for grammar in grammars],
    }
    answers = httpx.post(url + "/generate", json=body, timeout=300).json()
    by_regex, chosen, as_json, free = (answer["text"] for answer in answers)
    assert re.fullmatch("(Paris|Rome), [0-9]{2}", by_regex)
    assert chosen in ("Paris", "Rome")
    assert as_json.startswith("{")
    assert free.startswith(" Paris.")
    assert answers[0]["meta_info"]["forced_tokens"] > 0


def test_server_routes(url: str, engine: sgjax.Engine):
    info = httpx.get(url + "/server_info").json()
    assert info["context_length"] == 1024
    assert info["internal_states"][0]["cache"]["num_pages"] * info["page_size"] == info["max_total_num_tokens"]
    assert httpx.get(url + "/model_info").json()["chat_template"] == engine.tokenizer.chat_template
    httpx.post(url + "/v1/completions", json={"prompt": "word " * 40, "max_tokens": 1}, timeout=300)
    assert httpx.post(url + "/flush_cache").json()["freed_pages"] > 0
    assert engine.stats().cache.num_cached == 0


def test_many_at_once_answer_as_alone(client: openai.OpenAI):
    prompts = [f"{number} plus {number} is" for number in range(12)]

    def complete(prompt: str) -> str:
        answer = client.completions.create(model="default", prompt=prompt, temperature=0, max_tokens=6)
        return answer.choices[0].text

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(complete, prompts))
    assert all(together)
    alone = [complete(prompt) for prompt in prompts[:3]]
    assert together[:3] == alone


def test_native_route(url: str):
    body = {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 2}}
    answer = httpx.post(url + "/generate", json=body, timeout=300).json()
    assert answer["text"] == " Paris."
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 2}


def test_metrics_grow_by_what_receipts_say(url: str):
    def read() -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(url + "/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples}

    before = read()
    body = {"text": ["The capital of France is", "One, two,"], "sampling_params": {"max_new_tokens": 4, "n": 2}}
    answers = httpx.post(url + "/generate", json=body, timeout=300).json()
    receipts = [answer["meta_info"]["receipt"] for answer in answers]
    after = read()
    for name in ("prompt", "cached"):
        grown = after[f"sgjax:{name}_tokens_total"] - before[f"sgjax:{name}_tokens_total"]
        assert grown == sum(receipt[f"{name}_tokens"] for receipt in receipts)
    grown = after["sgjax:generation_tokens_total"] - before["sgjax:generation_tokens_total"]
    assert grown == sum(receipt["completion_tokens"] for receipt in receipts)
    assert after["sgjax:engine_up"] == 1
    assert after["sgjax:late_compile_events_total"] == 0


async def test_leaving_frees_the_pages(url: str, engine: sgjax.Engine):
    body = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True, "n": 2}
    async with (
        httpx.AsyncClient(timeout=300) as client,
        client.stream("POST", url + "/v1/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        assert (await asyncio.to_thread(engine.stats)).num_running == 2
    # The fixture waits until nothing runs, far less than 900 tokens take, and checks the pages.
    assert (await asyncio.to_thread(engine.stats)).counters.generated_tokens < 1500


EXTREMES = [
    {"top_k": 2**30},
    {"min_new_tokens": 2**30, "max_new_tokens": None, "stop": "e"},
    {"temperature": 1e-300},
    {"temperature": 100, "top_p": 1e-300},
    {"logit_bias": {"5": 1e30}},
    {"logit_bias": {str(i): -1e30 for i in range(300)}},
    {"repetition_penalty": 0.01},
    {"frequency_penalty": 2, "presence_penalty": -2, "min_p": 1},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1, "n": 2},
    {"stop_regex": ["(a+)+$"]},
    {"stop_token_ids": [0, 1], "min_new_tokens": 4},
]


@pytest.mark.parametrize("sampling", EXTREMES, ids=lambda sampling: str(sampling)[:50])
def test_extreme_parameters_harm_nobody(url: str, engine: sgjax.Engine, sampling: dict):
    """The outermost values that pass the door are answered, and the engine lives on."""
    body = {"text": "Once", "sampling_params": {"max_new_tokens": 4, **sampling}}
    response = httpx.post(url + "/generate", json=body, timeout=300)
    assert response.status_code == 200
    assert engine.is_alive
