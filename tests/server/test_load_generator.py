"""What SGLang 0.5's load generator (`sglang.bench_serving`) sends, and how it reads the answers, replayed.

The bodies are those that it was seen to send with its backends sglang, sglang-oai and sglang-oai-chat.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import pytest

from .fakes import FakeEngine

OPENAI = {"model": "fake", "temperature": 0.0, "ignore_eos": True}
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sglang": (
        "/generate",
        {
            "text": "abc",
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 5, "ignore_eos": True},
            "lora_path": None,
            "return_logprob": False,
            "return_routed_experts": False,
            "logprob_start_len": -1,
        },
    ),
    "sglang-oai": ("/v1/completions", {**OPENAI, "prompt": "abc", "best_of": 1, "max_tokens": 5}),
    "sglang-oai-chat": (
        "/v1/chat/completions",
        {**OPENAI, "messages": [{"role": "user", "content": "abc"}], "max_completion_tokens": 5},
    ),
}


@dataclasses.dataclass
class Reading:
    """What the generator learns from an answer: it takes any line that is not blank or `[DONE]` for a JSON object."""

    text: str = ""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_gaps: int = 0
    num_cached_tokens: int | None = None

    def line(self, line: str) -> None:
        data = line.strip().removeprefix("data: ")
        if not data or data == "[DONE]":
            return
        answer = json.loads(data)
        if "meta_info" in answer:
            self._native(answer)
        else:
            self._openai(answer)

    def _native(self, answer: dict[str, Any]) -> None:
        """The text so far, and how many tokens it is."""
        meta = answer["meta_info"]
        self.num_prompt_tokens = meta["prompt_tokens"]
        if answer["text"]:
            self.num_gaps += meta["completion_tokens"] - self.num_output_tokens
            self.text, self.num_output_tokens = answer["text"], meta["completion_tokens"]

    def _openai(self, answer: dict[str, Any]) -> None:
        """A piece of text in the first choice, which completions always have; `usage` where there is one."""
        if details := (answer.get("sglext") or {}).get("cached_tokens_details"):
            self.num_cached_tokens = (details.get("device") or 0) + (details.get("host") or 0)
        usage = answer.get("usage") or {}
        self.num_prompt_tokens = usage.get("prompt_tokens", self.num_prompt_tokens)
        self.num_output_tokens = usage.get("completion_tokens", self.num_output_tokens)
        choice = answer["choices"][0]
        message = choice.get("delta") or choice.get("message") or {}
        piece = choice.get("text") or (message.get("reasoning_content") or "") + (message.get("content") or "")
        self.num_gaps += bool(piece)
        self.text += piece


async def _ask(client: httpx.AsyncClient, backend: str, **fields: Any) -> Reading:
    path, body = BACKENDS[backend]
    reading = Reading()
    async with client.stream("POST", path, json={**body, **fields}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            reading.line(line)
    return reading


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_run(client: httpx.AsyncClient, engine: FakeEngine, backend: str):
    """Waiting, naming the model, warming up, emptying the cache, asking, and asking for the state at the end."""
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "fake"
    assert (await client.get("/model_info")).json()["tokenizer_path"] == "embedded"
    await _ask(client, backend, stream=True)
    assert (await client.post("/flush_cache", params={"timeout": 60.0})).status_code == 200
    assert engine.num_flushes == 1

    streamed = await _ask(client, backend, stream=True)
    assert (streamed.text, streamed.num_gaps) == ("Hello", 5)
    whole = await _ask(client, backend, stream=False)
    assert (whole.text, whole.num_output_tokens) == ("Hello", 5)
    assert whole.num_prompt_tokens == len(engine.submitted[-1].input_ids)
    assert {(request.sampling.max_new_tokens, request.sampling.ignore_eos) for request in engine.submitted} == {
        (5, True)
    }

    (state,) = (await client.get("/server_info")).json()["internal_states"]
    assert state.get("avg_spec_accept_length") is None


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai"])
async def test_prompts_as_token_ids(client: httpx.AsyncClient, engine: FakeEngine, backend: str):
    """With --tokenize-prompt."""
    fields = {"text": None, "input_ids": [97, 98]} if backend == "sglang" else {"prompt": [97, 98]}
    assert (await _ask(client, backend, stream=True, **fields)).text == "Hello"
    assert engine.submitted[0].input_ids == (97, 98)


async def test_log_probabilities(client: httpx.AsyncClient):
    """With --return-logprob."""
    fields = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2, "token_ids_logprob": [70]}
    assert (await _ask(client, "sglang", stream=True, **fields)).text == "Hello"
    assert (await _ask(client, "sglang-oai", stream=True, logprobs=2)).text == "Hello"


@pytest.mark.parametrize("stream", [False, True])
async def test_cache_report(client: httpx.AsyncClient, stream: bool):
    """With --cache-report."""
    for backend in ("sglang-oai", "sglang-oai-chat"):
        answer = await _ask(client, backend, stream=stream, return_cached_tokens_details=True)
        assert (answer.text, answer.num_cached_tokens) == ("Hello", 2)
        assert (await _ask(client, backend, stream=stream)).num_cached_tokens is None


@pytest.mark.parametrize("backend", BACKENDS)
async def test_fields_of_the_users(client: httpx.AsyncClient, engine: FakeEngine, backend: str):
    """With --extra-request-body, which may set any field."""
    fields = {"sampling_params": {"min_p": 0.1}} if backend == "sglang" else {"min_p": 0.1, "ignore_eos": False}
    await _ask(client, backend, stream=True, **fields)
    assert engine.submitted[0].sampling.min_p == 0.1


async def test_embeddings_are_refused(client: httpx.AsyncClient):
    """With the backend sglang-embedding."""
    response = await client.post("/v1/embeddings", json={"input": "abc", "model": "fake"})
    assert response.status_code == 400
    assert "not an embedding model" in response.json()["error"]["message"]
