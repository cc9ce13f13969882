"""Receipts in OpenAI's answers, which only who asks for them gets."""

from __future__ import annotations

import pytest

from .conftest import events_of

ROUTES = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}]},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_every_choice_has_its_own(client, path: str):
    body = {**ROUTES[path], "max_tokens": 5, "n": 2}
    answer = (await client.post(path, json={**body, "return_receipt": True})).json()
    for choice in answer["choices"]:
        receipt = choice["sgjax"]["receipt"]
        assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == (answer["usage"]["prompt_tokens"], 5)
        assert sum(receipt["prompt_parts"].values()) == receipt["prompt_tokens"]
        assert (receipt["queue_s"], receipt["ttft_s"], receipt["e2e_s"]) == (0.1, 0.2, 0.5)
    answer = (await client.post(path, json=body)).json()
    assert all("sgjax" not in choice for choice in answer["choices"])


@pytest.mark.parametrize("path", ROUTES)
async def test_in_a_stream_it_comes_with_the_finish_reason(client, path: str):
    body = {**ROUTES[path], "max_tokens": 5, "n": 2, "stream": True}
    events = events_of(await client.post(path, json={**body, "return_receipt": True}))
    choices = [choice for event in events for choice in event["choices"]]
    ends = [choice for choice in choices if choice["finish_reason"] is not None]
    assert [choice for choice in choices if "sgjax" in choice] == ends
    assert sorted(choice["index"] for choice in ends) == [0, 1]
    assert {choice["sgjax"]["receipt"]["completion_tokens"] for choice in ends} == {5}
    events = events_of(await client.post(path, json=body))
    assert all("sgjax" not in choice for event in events for choice in event["choices"])
