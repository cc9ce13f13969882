"""/v1/chat/completions on a fake engine."""

from __future__ import annotations

from sgjax_server.config import ServerConfig

from .conftest import events_of
from .fakes import EOS, FakeEngine, FakeHandle

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def contents_of(events: list[dict]) -> list[str]:
    """The text of each chunk that has one."""
    deltas = [event["choices"][0]["delta"] for event in events]
    return [delta["content"] for delta in deltas if "content" in delta]


async def test_answer(client, engine: FakeEngine):
    response = await client.post(URL, json={"messages": HELLO})
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello world",
                "refusal": None,
                "reasoning_content": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": EOS,
        }
    ]
    prompt_tokens = len("user:hi|assistant:")
    assert body["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": prompt_tokens + 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    (request,) = engine.submitted
    assert bytes(request.input_ids) == b"user:hi|assistant:"
    assert body["id"] == request.rid
    assert request.sampling.max_new_tokens is None
    assert engine.aborted == []


async def test_sampling_fields_reach_the_engine(client, engine: FakeEngine):
    engine.generation_defaults.update(temperature=0.6, top_p=0.9)
    body = {
        "messages": HELLO,
        "model": "anything",
        "max_completion_tokens": 5,
        "max_tokens": 7,
        "temperature": 0,
        "top_k": 3,
        "min_tokens": 2,
        "stop": "x",
        "logit_bias": {"65": -3},
        "seed": 9,
        "rid": "mine",
        "priority": 4,
        "extra_key": "a",
        "cache_salt": "b",
        "user": "someone",
        "tools": [],
        "response_format": {"type": "text"},
        "frequency_penalty": None,
    }
    response = await client.post(URL, json=body)
    assert response.status_code == 200
    (request,) = engine.submitted
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.min_new_tokens, sampling.top_k, sampling.seed) == (5, 2, 3, 9)
    assert (sampling.temperature, sampling.top_p) == (0, 0.9)
    assert (sampling.stop, sampling.logit_bias) == (("x",), {65: -3.0})
    assert (request.rid, request.priority) == ("mine", 4)
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_namespaces_are_told_apart(client, engine: FakeEngine):
    for fields in ({}, {"extra_key": "a"}, {"cache_salt": "a"}, {"extra_key": "a", "cache_salt": "a"}):
        await client.post(URL, json={"messages": HELLO, **fields})
    assert engine.submitted[0].extra_key == ""
    assert len({request.extra_key for request in engine.submitted}) == 4


async def test_continue_final_message(client, engine: FakeEngine):
    messages = [*HELLO, {"role": "assistant", "content": "He"}]
    await client.post(URL, json={"messages": messages, "continue_final_message": True})
    assert bytes(engine.submitted[0].input_ids) == b"user:hi|assistant:He"


async def test_samples_and_logprobs(client):
    body = {"messages": HELLO, "n": 2, "max_tokens": 1, "logprobs": True, "top_logprobs": 2}
    choices = (await client.post(URL, json=body)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    token = {"token": "H", "bytes": [72], "logprob": -0.5}
    top = [{"token": "A", "bytes": [65], "logprob": -1.0}, {"token": "B", "bytes": [66], "logprob": -2.0}]
    assert choices[1]["logprobs"] == {"content": [{**token, "top_logprobs": top}], "refusal": None}


async def test_logprobs_of_part_of_a_character(client, engine: FakeEngine):
    engine._reply = lambda request: "é"
    body = {"messages": HELLO, "max_tokens": 1, "logprobs": True}
    (token,) = (await client.post(URL, json=body)).json()["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["bytes"]) == ("\ufffd", [0xC3])


async def test_stream(client):
    body = {"messages": HELLO, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *events, last = events_of(await client.post(URL, json=body))
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    for index in (0, 1):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert all("role" not in choice["delta"] for choice in choices[1:])
        assert "".join(choice["delta"]["content"] for choice in choices[:-1]) == "Hello world"
        assert [choice["finish_reason"] for choice in choices] == [None] * 11 + ["stop"]
        assert choices[-1]["delta"] == {}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 24
    assert last["usage"]["prompt_tokens"] == len("user:hi|assistant:")


async def test_stream_interval(client):
    """Several tokens come in one chunk, with the log-probabilities of them all."""
    client._transport.app.state.config = ServerConfig(stream_interval=4)
    events = events_of(await client.post(URL, json={"messages": HELLO, "stream": True, "logprobs": True}))
    assert contents_of(events) == ["Hell", "o wo", "rld"]
    given = [event["choices"][0]["logprobs"] for event in events]
    assert [len(logprobs["content"]) for logprobs in given if logprobs] == [4, 4, 4]


async def test_stream_joins_what_has_already_arrived(client, engine: FakeEngine, monkeypatch):
    """A reader that lags gets the text in fewer, longer chunks."""
    together = [len("Hello"), len(" "), len("world") + 1]
    monkeypatch.setattr(engine, "submit", lambda request: FakeHandle(request, engine._deltas(request), together))
    events = events_of(await client.post(URL, json={"messages": HELLO, "stream": True}))
    assert contents_of(events) == ["Hello", " ", "world"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
