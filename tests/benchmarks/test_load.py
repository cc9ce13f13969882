"""The load generator against a small server that speaks just enough HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from benchmarks.load import Client, LoadError, closed_loop
from benchmarks.run_all import table, with_table
from benchmarks.workloads import WORKLOADS, Prompts

TOKEN_S = 0.005


class FakeServer:
    """Answers completions with one event per token. `mangle` changes the raw body before it is cut into chunks.

    Attributes:
      bodies: the requests' JSON. most_at_once: the largest number of requests in flight.
    """

    def __init__(self, *, chunked: bool = True, status: int = 200, mangle: Callable[[bytes], bytes] = lambda b: b):
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self._chunked, self._status, self._mangle = chunked, status, mangle
        self._seen: set[tuple[int, ...]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Client]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        async with server:
            yield Client(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        request = await reader.readexactly(length)
        framing = "Transfer-Encoding: chunked\r\n" if self._chunked else ""
        writer.write(f"HTTP/1.1 {self._status} X\r\nContent-Type: text/event-stream\r\n{framing}\r\n".encode())
        if head.startswith(b"GET"):
            self._send(writer, b"{}")
        elif self._status != 200:
            self._send(writer, b'{"error": "no such thing"}')
        else:
            await self._stream(json.loads(request), writer)
        if self._chunked:
            writer.write(b"0\r\n\r\n")
        self._at_once -= 1
        writer.close()
        await writer.wait_closed()

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.bodies.append(body)
        prefix = tuple(body["prompt"][:1024])
        cached = len(prefix) if prefix in self._seen else 0
        self._seen.add(prefix)
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(TOKEN_S)
            self._send(writer, b'data: {"choices":[{"index":0,"text":"an \\"error\\""}]}\n\n')
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self._send(writer, f'data: {{"choices": [], "usage": {json.dumps(usage)}}}\r\n\r\n'.encode())
        self._send(writer, b"data: [DONE]\n\n")

    def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        data = self._mangle(data)
        # Cut at odd places: events may span chunks, and chunks packets.
        for part in (data[:7], data[7:20], data[20:]):
            if part:
                writer.write(b"%x\r\n%b\r\n" % (len(part), part) if self._chunked else part)


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_is_counted_and_timed(chunked: bool):
    server = FakeServer(chunked=chunked)
    async with server.serving() as client:
        answer = await client.complete([5, 6, 7], max_tokens=20)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (3, 20, 0)
    assert len(answer.gaps_s) == 19
    assert answer.last_s - answer.first_s == pytest.approx(sum(answer.gaps_s))
    assert TOKEN_S <= answer.ttft_s < 20 * TOKEN_S
    assert TOKEN_S <= answer.tpot_s < 10 * TOKEN_S
    request = server.bodies[0]
    assert request["prompt"] == [5, 6, 7]
    assert request["temperature"] == 0
    assert request["ignore_eos"] is True
    assert request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}


async def test_a_closed_loop_keeps_its_concurrency():
    server = FakeServer()
    async with server.serving() as client:
        load = await closed_loop(client, [[i] for i in range(10)], max_tokens=4, concurrency=3)
    assert server.most_at_once == 3
    assert sorted(body["prompt"][0] for body in server.bodies) == list(range(10))
    assert len(load.answers) == 10
    assert load.wall_s >= 4 * 4 * TOKEN_S  # ten requests three at a time: four rounds
    assert 0 < load.client_cpu < 1.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"status": 404}, "answered 404.*no such thing"),
        ({"mangle": lambda b: b.replace(b"usage", b"other")}, "without usage"),
        ({"mangle": lambda b: b.replace(b'"completion_tokens": 4', b'"completion_tokens": 3')}, "3 tokens, not 4"),
        ({"mangle": lambda b: b.replace(b"choices", b"error")}, "failed on the way"),
        ({"mangle": lambda b: b"", "chunked": False}, "without an answer"),
    ],
)
async def test_bad_answers_are_errors(options: dict[str, Any], said: str):
    async with FakeServer(**options).serving() as client:
        with pytest.raises(LoadError, match=said):
            await client.complete([1], max_tokens=4)


async def test_a_broken_connection_is_an_error():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ndata: ")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        client = Client(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(LoadError, match="broke off"):
            await client.complete([1], max_tokens=4)


async def test_status():
    async with FakeServer(status=503).serving() as client:
        assert await client.status() == 503
    assert await client.status() == 0  # nobody listens any more


def test_only_http_is_measured():
    with pytest.raises(LoadError, match="https"):
        asyncio.run(Client(base_url="https://example.org").complete([1], 1))


async def test_shared_prefixes_report_hits_of_the_most_possible():
    async with FakeServer().serving() as client:
        figures = await WORKLOADS["shared_prefixes"](client, Prompts(0))
    # The fake counts every prefix but the first of its kind as found, so the best possible is reached.
    assert figures["hit_rate_of_best"] == 1
    assert figures["hit_rate"] == pytest.approx(60 * 1024 / (64 * 1088))
    assert figures["total_tokens_per_s"] == pytest.approx(figures["output_tokens_per_s"] * (1088 + 32) / 32)


async def test_one_request():
    server = FakeServer()
    async with server.serving() as client:
        figures = await WORKLOADS["one_request"](client, Prompts())
    assert len(server.bodies) == 1
    assert (len(server.bodies[0]["prompt"]), server.bodies[0]["max_tokens"]) == (32, 128)
    assert figures["ms_per_token"] >= TOKEN_S * 1e3


def test_prompts_are_fresh_unless_seeded():
    assert Prompts().draw(1, 8) != Prompts().draw(1, 8)
    assert Prompts(3).draw(2, 8) == Prompts(3).draw(2, 8)


def test_table_replaces_what_is_between_its_markers():
    workload = dict.fromkeys(
        ("ms_per_token", "output_tokens_per_s", "total_tokens_per_s", "ttft_ms", "hit_rate_of_best"), 0.5
    )
    result = {
        "processor": "A processor",
        "cores": 2,
        "memory_gib": 24,
        "versions": {"jax": "0.11.2"},
        "commit": "abc",
        "date": "2026-11-22",
        "runs": 3,
        "figures": {**dict.fromkeys(WORKLOADS, workload), "start": {"cold_s": 12.3, "warm_s": 4.5}},
    }
    text = with_table("before\n<!-- benchmark table -->\nold\n<!-- end -->\nafter\n", table(result))
    assert text.startswith("before\n<!-- benchmark table -->\n| workload |")
    assert text.endswith("medians of 3 runs.\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| 12.3 s |" in text
    assert "| 50.0% |" in text
    with pytest.raises(ValueError, match="README"):
        with_table("no markers", "x")
