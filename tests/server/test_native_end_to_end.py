"""SGLang's smaller routes and OpenAI's Responses on the embedded model over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import sgjax

GREEDY = {"temperature": 0, "max_new_tokens": 6}
LONG = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid. And so"


pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture
def client(embedded_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedded_url, timeout=300) as client:
        yield client


def _post(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json() if response.content else None


def test_tokens(client: httpx.Client, embedded_engine: sgjax.Engine):
    tokens = _post(client, "/tokenize", prompt=LONG)["tokens"]
    assert tokens == embedded_engine.tokenizer.encode(LONG)
    assert _post(client, "/detokenize", tokens=tokens) == {"text": LONG}


def test_score(client: httpx.Client, embedded_engine: sgjax.Engine):
    """The same scores as in a script, from prompts of which all but the ends are computed once."""
    _post(client, "/flush_cache")
    (paris, rome) = (embedded_engine.tokenizer.encode(text)[0] for text in (" Paris", " Rome"))
    before = embedded_engine.stats().counters
    items = ["The capital of France is", "The capital of Italy is"]
    query = LONG + " on. " * 8
    answer = _post(client, "/v1/score", query=query, items=items, label_token_ids=[paris, rome], apply_softmax=True)
    assert [scores[0] > scores[1] for scores in answer["scores"]] == [True, False]
    after = embedded_engine.stats().counters
    assert after.cached_tokens - before.cached_tokens >= 32
    expected = embedded_engine.score(query, items, [paris, rome])
    assert answer["scores"] == [pytest.approx(scores, abs=1e-3) for scores in expected]


def test_session(client: httpx.Client):
    """What the client does not send again is there, in the prompt and in the prefix cache."""
    session = _post(client, "/open_session", capacity_of_str_len=1000)
    first = _post(client, "/generate", text=LONG, rid="1", sampling_params=GREEDY, session_params={"id": session})
    params = {"id": session, "rid": "1"}
    second = _post(client, "/generate", text=" And", rid="2", sampling_params=GREEDY, session_params=params)
    whole = LONG + first["text"] + " And"
    assert second["text"] == _post(client, "/generate", text=whole, sampling_params=GREEDY)["text"]
    assert second["meta_info"]["prompt_tokens"] > first["meta_info"]["prompt_tokens"] + 6
    assert second["meta_info"]["cached_tokens"] >= 16


def test_response_goes_on_from_another(client: httpx.Client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as api:
        first = api.responses.create(model="m", input="What is the capital of France?", temperature=0)
        assert "Paris" in first.output_text
        second = api.responses.create(
            model="m", previous_response_id=first.id, input="And of Italy?", temperature=0, max_output_tokens=20
        )
        assert first.usage is not None
        assert second.usage is not None
        assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
        assert second.usage.input_tokens_details.cached_tokens >= 32


def test_best_of(client: httpx.Client):
    body = {"prompt": LONG, "best_of": 4, "n": 2, "max_tokens": 5, "seed": 1, "logprobs": 0}
    best, second = _post(client, "/v1/completions", **body)["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) / 5 for choice in (best, second)]
    assert means == sorted(means, reverse=True)


def test_pause_new_weights_and_continue(client: httpx.Client, embedded_engine: sgjax.Engine, embedded_model_path: Path):
    assert client.get("/health_generate").json() == {"status": "ready"}
    _post(client, "/pause_generation", mode="retract")
    path = str(embedded_model_path)
    answer = _post(client, "/update_weights_from_disk", model_path=path, weight_version="v2", abort_all_requests=True)
    assert answer["success"]
    assert embedded_engine.stats().is_paused
    _post(client, "/continue_generation")
    generated = _post(client, "/generate", text=LONG, sampling_params=GREEDY)
    assert generated["meta_info"]["weight_version"] == "v2"
    assert generated["meta_info"]["cached_tokens"] == 0
    for bad in ("/nowhere", "/etc", "x" * 300):
        refused = client.post("/update_weights_from_disk", json={"model_path": bad})
        assert (refused.status_code, refused.json()["success"]) == (400, False)
    assert client.get("/get_weight_version").json() == {"weight_version": "v2"}
    _post(client, "/update_weights_from_disk", model_path=path, weight_version="default")


def test_profile(client: httpx.Client, tmp_path: Path):
    _post(client, "/start_profile", output_dir=str(tmp_path))
    again = client.post("/start_profile")
    assert again.status_code == 400
    _post(client, "/generate", text="a", sampling_params=GREEDY)
    _post(client, "/stop_profile")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert client.post("/stop_profile").status_code == 400
