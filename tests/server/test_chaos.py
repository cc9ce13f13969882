"""Two thousand requests, many of them rude: none lost, nothing leaked, nothing restarted."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ..engine.conftest import tiny_model as tiny_model
from .processes import Server, served, stats, tiny_flags, until

NUM_REQUESTS, CONCURRENCY, CONTEXT = 2000, 32, 512
WORDS = ["rain", "fell", "on", "the", "harbour", "and", "the", "boats", "were", "still", "while", "somebody", "sang"]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server(tiny_model: Path, embedded_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = tiny_flags(tiny_model, embedded_model_path, tmp_path_factory.mktemp("compiled"))
    with served(*flags) as server:
        yield server


class Crowd:
    """Clients of one server, and what became of their requests.

    Attributes:
      outcomes: how many ended how, by kind of request.
    """

    def __init__(self, client: httpx.AsyncClient, rng: random.Random):
        self._client = client
        self._rng = rng
        self.outcomes: collections.Counter[str] = collections.Counter()
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self.whole: 6,
            self.streamed: 6,
            self.slow_reader: 1,
            self.leaves_a_stream: 3,
            self.leaves_while_it_waits: 2,
            self.constrained: 1,
            self.aborted: 1,
            self.malformed: 3,
            self.too_long: 1,
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    async def one(self) -> None:
        (kind,) = self._rng.choices(self._kinds, self._weights)
        await kind()
        self.outcomes[kind.__name__] += 1

    def _body(self, **fields: object) -> dict:
        prompt = " ".join(self._rng.choices(WORDS, k=self._rng.randrange(1, 60)))
        sampling = {"temperature": self._rng.choice([0, 1]), "n": self._rng.choice([1, 1, 1, 3])}
        return {"prompt": prompt, "max_tokens": self._rng.randrange(1, 24), "ignore_eos": True, **sampling, **fields}

    async def whole(self) -> None:
        body = self._body(stop=self._rng.choice([None, [" the"], ["zzz"]]))
        answer = await self._client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        choices = answer.json()["choices"]
        assert len(choices) == body["n"]
        assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)

    async def streamed(self) -> None:
        await self._read_stream(0.0)

    async def slow_reader(self) -> None:
        await self._read_stream(0.02)

    async def _read_stream(self, pause_s: float) -> None:
        body = self._body(stream=True, stream_options={"include_usage": True})
        async with self._stream(body) as events:
            found = []
            async for event in events:
                found.append(event)
                await asyncio.sleep(pause_s)
        assert found.pop() == "[DONE]"
        assert json.loads(found[-1])["usage"]["completion_tokens"] == body["max_tokens"] * body["n"]

    @contextlib.asynccontextmanager
    async def _stream(self, body: dict) -> AsyncIterator[AsyncIterator[str]]:
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            yield (line.removeprefix("data: ") async for line in response.aiter_lines() if line)

    async def leaves_a_stream(self) -> None:
        async with self._stream(self._body(stream=True, max_tokens=400, n=1)) as events:
            for _ in range(self._rng.randrange(1, 6)):
                await anext(events)

    async def leaves_while_it_waits(self) -> None:
        with contextlib.suppress(httpx.TimeoutException):
            await self._client.post(
                "/generate",
                json={"text": "Rain", "sampling_params": {"max_new_tokens": 450, "ignore_eos": True}},
                timeout=self._rng.uniform(0.001, 0.2),
            )

    async def constrained(self) -> None:
        body = self._body(json_schema=SCHEMA, max_tokens=60, ignore_eos=False)
        answer = await self._client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        for choice in answer.json()["choices"]:
            if choice["finish_reason"] == "stop":
                assert isinstance(json.loads(choice["text"])["n"], int)

    async def aborted(self) -> None:
        rid = f"abort-{self._rng.random()}"
        body = {"text": "Rain", "rid": rid, "sampling_params": {"max_new_tokens": 450, "ignore_eos": True}}
        asking = asyncio.create_task(self._client.post("/generate", json=body))
        await asyncio.sleep(self._rng.uniform(0.05, 0.2))
        while not asking.done():
            assert (await self._client.post("/abort_request", json={"rid": rid})).status_code == 200
            await asyncio.wait((asking,), timeout=0.5)
        answer = asking.result()
        assert answer.status_code == 200, answer.text
        assert answer.json()["meta_info"]["finish_reason"]["type"] in ("abort", "length")

    async def malformed(self) -> None:
        url = self._rng.choice(["/v1/completions", "/v1/chat/completions", "/generate", "/v1/messages", "/api/chat"])
        content = self._rng.choice(
            [
                b"{",
                b"",
                b"[]",
                b"null",
                b'{"prompt": "\xff\xfe", "messages": "\xff", "text": "\xff"}',
                b'{"prompt": "\\ud800", "text": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
                b'{"prompt": 1e999, "text": {}, "messages": 7, "max_tokens": "many"}',
                b'{"prompt": ' + b"[" * 5000,
                b'{"text": "a", "prompt": "a", "messages": [], "temperature": -1, "sampling_params": {"top_p": 9}}',
            ]
        )
        answer = await self._client.post(url, content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (url, content[:80], answer.text)
        assert answer.json()["error"]

    async def too_long(self) -> None:
        ids = [7] * self._rng.choice([CONTEXT + 1, 20_000])
        answer = await self._client.post("/v1/completions", json={"prompt": ids})
        assert answer.status_code == 400, answer.text
        assert "prompt" in answer.json()["error"]["message"]


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def crowd(url: str, num_requests: int, seed: int) -> collections.Counter[str]:
    limits = httpx.Limits(max_connections=2 * CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        clients = Crowd(client, random.Random(seed))
        tickets = iter(range(num_requests))

        async def work() -> None:
            for _ in tickets:
                await clients.one()

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
        return clients.outcomes


def test_a_rude_crowd(server: Server):
    asyncio.run(crowd(server.url, NUM_REQUESTS // 4, seed=0))
    before = {pid: resident_mib(pid) for pid in server.pids("process")}
    outcomes = asyncio.run(crowd(server.url, NUM_REQUESTS - NUM_REQUESTS // 4, seed=1))
    assert len(outcomes) == 9  # each kind was among them
    assert sum(outcomes.values()) == NUM_REQUESTS - NUM_REQUESTS // 4
    until(lambda: stats(server)["num_running"] + stats(server)["num_waiting"] == 0)
    state = stats(server)
    cache = state["cache"]
    assert cache["num_free"] + cache["num_cached"] == cache["num_pages"]
    assert cache["num_locked"] == state["num_grammar_queue"] == state["num_integrity_failures"] == 0
    after = {pid: resident_mib(pid) for pid in server.pids("process")}
    assert after.keys() == before.keys()  # nothing was restarted
    for pid, mib in after.items():
        assert mib - before[pid] < 60, "memory is not flat"
    assert not any("Traceback" in line or "ERROR" in line for line in server.log), server.log
