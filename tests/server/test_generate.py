"""/generate on a fake engine."""

from __future__ import annotations

import dataclasses

import pytest

from sgjax.types import PromptParts, Receipt

from .conftest import events_of
from .fakes import EOS, FakeEngine

URL = "/generate"
RECEIPT = Receipt(
    prompt_tokens=3,
    completion_tokens=12,
    cached_tokens=2,
    forced_tokens=1,
    queue_s=0.1,
    ttft_s=0.2,
    e2e_s=0.5,
    prompt_parts=PromptParts(cached=2, last_token=1),
)


async def test_text(client, engine: FakeEngine):
    body = {"text": "abc", "sampling_params": {"temperature": 0, "stop": None, "regex": None}, "rid": "r"}
    answer = (await client.post(URL, json=body)).json()
    assert answer == {
        "text": "Hello world",
        "output_ids": [*b"Hello world", EOS],
        "meta_info": {
            "id": "r",
            "finish_reason": {"type": "stop", "matched": EOS},
            "prompt_tokens": 3,
            "completion_tokens": 12,
            "cached_tokens": 2,
            "forced_tokens": 1,
            "e2e_latency": 0.5,
            "weight_version": "default",
            "receipt": dataclasses.asdict(RECEIPT),
        },
    }
    assert engine.submitted[0].sampling.max_new_tokens == 128


async def test_batch_with_one_value_each(client, engine: FakeEngine):
    body = {
        "input_ids": [[97], [98, 99]],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2, "sampling_seed": 5}],
        "return_logprob": [False, True],
        "logprob_start_len": -1,
        "top_logprobs_num": [0, 1],
        "rid": "r",
    }
    answers = (await client.post(URL, json=body)).json()
    assert [answer["text"] for answer in answers] == ["H", "He"]
    assert [answer["meta_info"]["id"] for answer in answers] == ["r_0", "r_1"]
    assert answers[0]["meta_info"]["finish_reason"] == {"type": "length", "length": 1}
    assert "output_token_logprobs" not in answers[0]["meta_info"]
    assert answers[1]["meta_info"]["output_top_logprobs"] == [[[-1.0, 65, None]]] * 2
    assert engine.submitted[1].sampling.seed == 5


async def test_logprobs(client):
    body = {
        "text": "ab",
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "token_ids_logprob": [70],
        "return_text_in_logprobs": True,
    }
    meta = (await client.post(URL, json=body)).json()["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 97, "a"], [-0.5, 98, "b"]]
    assert meta["output_token_logprobs"] == [[-0.5, 72, "H"]]
    assert meta["input_top_logprobs"] == [None, [[-1.0, 65, "A"], [-2.0, 66, "B"]]]
    assert meta["output_top_logprobs"] == [[[-1.0, 65, "A"], [-2.0, 66, "B"]]]
    assert meta["input_token_ids_logprobs"] == [None, [[-9.0, 70, "F"]]]
    assert meta["output_token_ids_logprobs"] == [[[-9.0, 70, "F"]]]


async def test_several_samples_give_a_list(client):
    answers = (await client.post(URL, json={"text": "a", "sampling_params": {"n": 2}})).json()
    assert [answer["text"] for answer in answers] == ["Hello world"] * 2


async def test_stream_repeats_the_text_so_far(client):
    events = events_of(await client.post(URL, json={"text": "a", "stream": True}))
    assert [event["text"] for event in events] == ["Hello world"[: i + 1] for i in range(11)] + ["Hello world"]
    assert [event["meta_info"]["completion_tokens"] for event in events] == list(range(1, 13))
    assert {event["meta_info"]["cached_tokens"] for event in events} == {2}
    assert events[0]["meta_info"]["finish_reason"] is None
    assert "receipt" not in events[0]["meta_info"]
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "stop"
    assert "index" not in events[0]


async def test_stream_of_a_batch_has_indices(client):
    body = {"text": ["a", "b"], "sampling_params": {"n": 2}, "stream": True}
    events = events_of(await client.post(URL, json=body))
    last = {event["index"]: event["text"] for event in events}
    assert last == dict.fromkeys(range(4), "Hello world")


@pytest.mark.parametrize("fields", [{"priority": 3}, {"custom_labels": {"a": "b"}}, {"lora_path": None}])
async def test_harmless_fields(client, fields):
    assert (await client.post(URL, json={"text": "a", **fields})).status_code == 200
