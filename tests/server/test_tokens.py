"""/tokenize, /detokenize and /v1/score on a fake engine."""

from __future__ import annotations

import json
import math

import pytest
from sgjax_server import calls

from sgjax.types import MAX_LOGPROB_TOKENS, OutputDelta, Request, TokenLogprobs

from .fakes import FakeEngine


@pytest.mark.parametrize("inline_chars", [0, 10])
@pytest.mark.parametrize(
    ("prompt", "tokens", "count"),
    [("ab", [97, 98], 2), ("", [], 0), (["ab", ""], [[97, 98], []], [2, 0]), ([], [], [])],
)
async def test_tokenize(client, monkeypatch, prompt, tokens, count, inline_chars: int):
    monkeypatch.setattr(calls, "_INLINE_CHARS", inline_chars)  # 0: in a thread
    for path in ("/tokenize", "/v1/tokenize"):
        response = await client.post(path, json={"model": "m", "prompt": prompt, "add_special_tokens": False})
        assert response.json() == {"tokens": tokens, "count": count, "max_model_len": 1024}


async def test_tokenize_a_conversation(client):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    assert bytes(tokens) == b"user:hi|assistant:"
    tokens = (await client.post("/tokenize", json={**body, "add_generation_prompt": False})).json()["tokens"]
    assert bytes(tokens) == b"user:hi"


@pytest.mark.parametrize(
    ("tokens", "text"), [([97, 0, 98], "ab"), ([], ""), ([[97], [], [98, 99]], ["a", "", "bc"]), ([195], "\ufffd")]
)
async def test_detokenize(client, tokens, text):
    for path in ("/detokenize", "/v1/detokenize"):
        assert (await client.post(path, json={"tokens": tokens})).json() == {"text": text}


async def test_detokenize_special_tokens(client):
    body = {"tokens": [97, 0], "skip_special_tokens": False}
    assert (await client.post("/detokenize", json=body)).json() == {"text": "a\0"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "\ud800"}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages"),
        ("/tokenize", {"prompt": "a", "tools": [1]}, "tools"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": [[-1]]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/v1/score", {"items": ["a"], "label_token_ids": [1]}, "query"),
        ("/v1/score", {"query": "a", "items": [], "label_token_ids": [1]}, "items"),
        ("/v1/score", {"query": "", "items": [""], "label_token_ids": [1]}, "items"),
        ("/v1/score", {"query": [1], "items": ["a"], "label_token_ids": [1]}, "items"),
        ("/v1/score", {"query": "a", "items": [[1]], "label_token_ids": [1]}, "items"),
        ("/v1/score", {"query": [1], "items": [[300]], "label_token_ids": [1]}, "items"),
        ("/v1/score", {"query": "a", "items": "b"}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": "b", "label_token_ids": []}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": "b", "label_token_ids": [300]}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": "b", "label_token_ids": [[1], [2]]}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": "b", "label_token_ids": [[]]}, "label_token_ids"),
        (
            "/v1/score",
            {"query": "a", "items": "b", "label_token_ids": list(range(MAX_LOGPROB_TOKENS + 1))},
            "label_token_ids",
        ),
        ("/v1/score", {"query": "a", "items": "b", "label_token_ids": [1], "score_extraction_token": "x"}, None),
    ],
)
async def test_refused(client, engine: FakeEngine, path: str, body: dict, param: str | None):
    headers = {"Content-Type": "application/json"}
    response = await client.post(path, content=json.dumps(body), headers=headers)  # httpx refuses a lone surrogate
    assert (response.status_code, response.json()["error"]["param"]) == (400, param or "score_extraction_token")
    assert {request.rid for request in engine.submitted} == set(engine.aborted)


class Labels(FakeEngine):
    """Finds the label token 70 twice as likely as 71, and 72 impossible."""

    def _delta(self, request: Request, index: int, reply: list[int], position: int) -> OutputDelta:
        delta = super()._delta(request, index, reply, position)
        found = {70: math.log(0.4), 71: math.log(0.2), 72: -math.inf}
        asked = tuple((token, found[token]) for token in request.token_ids_logprob)
        delta.logprobs = [TokenLogprobs(reply[position], -0.5, asked=asked)]
        return delta


@pytest.fixture
def labels() -> dict:
    return {"query": "q", "items": ["a", "b"], "label_token_ids": [71, 70, 72, 71]}


class TestScore:
    @pytest.fixture
    def engine(self) -> FakeEngine:
        return Labels()

    async def test_probabilities(self, client, engine: FakeEngine, labels: dict):
        answer = (await client.post("/v1/score", json=labels)).json()
        assert answer["scores"] == [pytest.approx([0.2, 0.4, 0.0, 0.2])] * 2
        assert (answer["object"], answer["model"]) == ("scoring", "fake")
        assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}
        assert [bytes(request.input_ids) for request in engine.submitted] == [b"qa", b"qb"]
        assert {request.sampling.max_new_tokens for request in engine.submitted} == {1}

    async def test_softmax(self, client, labels: dict):
        answer = (await client.post("/v1/score", json={**labels, "apply_softmax": True})).json()
        assert answer["scores"] == [pytest.approx([0.25, 0.5, 0.0, 0.25])] * 2

    async def test_softmax_of_impossible_labels(self, client, labels: dict):
        body = {**labels, "apply_softmax": True, "label_token_ids": [72]}
        assert (await client.post("/v1/score", json=body)).json()["scores"] == [[0.0]] * 2

    async def test_item_first(self, client, engine: FakeEngine, labels: dict):
        assert (await client.post("/v1/score", json={**labels, "items": "a", "item_first": True})).status_code == 200
        assert [bytes(request.input_ids) for request in engine.submitted] == [b"aq"]

    async def test_token_ids_and_labels_of_their_own(self, client, engine: FakeEngine):
        body = {"query": [97], "items": [[98], [99]], "label_token_ids": [[70], [71, 70]]}
        answer = (await client.post("/v1/score", json=body)).json()
        assert answer["scores"] == [pytest.approx([0.4]), pytest.approx([0.2, 0.4])]
        assert [request.input_ids for request in engine.submitted] == [(97, 98), (97, 99)]
