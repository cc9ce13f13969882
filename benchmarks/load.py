"""A light load generator for servers with OpenAI's completions route: plain asyncio streams, no HTTP library.

It shares the processor with the server that it measures, so events are only counted and timed; of their JSON the last
one alone, with the usage, is read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any

_LINE_LIMIT_BYTES = 1 << 20


class LoadError(RuntimeError):
    """The server answered with an error, or not in the way of the API."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One streamed completion. Times are seconds of `time.perf_counter`.

    Attributes:
      first_s, last_s: when the first and the last event with a choice arrived.
      gaps_s: times between neighbouring events.
      cached_tokens: prompt tokens that the server took from its cache; 0 where it does not say.
    """

    start_s: float
    first_s: float
    last_s: float
    gaps_s: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_s - self.start_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first."""
        return (self.last_s - self.first_s) / max(self.completion_tokens - 1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """Where requests go.

    Attributes:
      model: what the requests name; a server with one model accepts any.
    """

    base_url: str
    model: str = "default"

    async def complete(self, prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        """Streams one greedy completion of exactly `max_tokens` tokens.

        Raises:
          LoadError: the server refuses, breaks off, or does not generate that many tokens.
        """
        body = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        times, usage = [], None
        async for line in self._post("/v1/completions", body):
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line or b'"choices": []' in line:
                usage = json.loads(line[6:]).get("usage")
            elif b'"error"' in line and "error" in (event := json.loads(line[6:])):
                raise LoadError(f"{self.base_url} failed on the way: {event['error']}")
            else:
                times.append(time.perf_counter())
        if not times or usage is None:
            raise LoadError(f"{self.base_url} ended the stream without {'usage' if times else 'an answer'}")
        if usage["completion_tokens"] != max_tokens:
            raise LoadError(f"{self.base_url} gave {usage['completion_tokens']} tokens, not {max_tokens}")
        gaps = tuple(after - before for before, after in itertools.pairwise(times))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(start, times[0], times[-1], gaps, usage["prompt_tokens"], usage["completion_tokens"], cached)

    async def status(self, path: str = "/health") -> int:
        """The HTTP status of a GET; 0 where nobody listens."""
        try:
            async with _Connection(self.base_url) as connection:
                return await connection.request("GET", path)
        except (OSError, asyncio.IncompleteReadError):
            return 0

    async def _post(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The lines of the answer."""
        try:
            async with _Connection(self.base_url) as connection:
                status = await connection.request("POST", path, json.dumps(body).encode())
                if status != 200:
                    text = b"".join([line async for line in connection.lines()]).decode(errors="replace")
                    raise LoadError(f"{self.base_url}{path} answered {status}: {text}")
                async for line in connection.lines():
                    yield line
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LoadError(f"{self.base_url}{path} broke off: {error}") from error


class _Connection:
    """One HTTP/1.1 exchange over a connection of its own."""

    def __init__(self, base_url: str):
        url = urllib.parse.urlsplit(base_url)
        if url.scheme != "http" or url.hostname is None:
            raise LoadError(f"only http:// URLs can be measured, not {base_url!r}")
        self._host, self._port, self._prefix = url.hostname, url.port or 80, url.path.rstrip("/")
        self._chunked = False

    async def __aenter__(self) -> _Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=_LINE_LIMIT_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def request(self, method: str, path: str, body: bytes = b"") -> int:
        """Sends a request; returns the status once the headers are here."""
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        head_lines = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        self._chunked = b"transfer-encoding: chunked" in head_lines
        return int(head_lines[0].split()[1])

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines as they arrive, without their ends."""
        rest = b""
        async for part in self._chunks() if self._chunked else self._until_closed():
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]

    async def _until_closed(self) -> AsyncIterator[bytes]:
        while part := await self._reader.read(1 << 16):
            yield part


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of requests gave.

    Attributes:
      wall_s: from the first request's start to the last answer's end.
      client_cpu: share of one core that this generator took.
    """

    answers: list[Answer]
    wall_s: float
    client_cpu: float


async def closed_loop(client: Client, prompts: Sequence[Sequence[int]], max_tokens: int, concurrency: int) -> Load:
    """Sends the prompts in order, `concurrency` at a time: a new one as soon as one is answered."""
    waiting = iter(prompts)

    async def work() -> list[Answer]:
        return [await client.complete(prompt, max_tokens) for prompt in waiting]

    cpu, start = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(concurrency)]
    wall = time.perf_counter() - start
    answers = [answer for worker in workers for answer in worker.result()]
    return Load(answers, wall, (time.process_time() - cpu) / wall)
