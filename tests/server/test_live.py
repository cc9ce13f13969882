"""The live view's events: what they hold, who sees texts in them, and that they cost nothing when nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.live_feed import LiveFeed

from ..serving import served_app
from .fakes import FakeEngine

TEXT = "You are a librarian who knows."


@pytest.fixture
def engine() -> FakeEngine:
    """Its cache holds one page, in a namespace of its own."""
    engine = FakeEngine()
    cache = engine.prefixes
    tokens = list(TEXT.encode())
    prefix = cache.match(tokens, "salt")
    cache.lock(prefix)
    pages = cache.allocate(1)
    assert pages is not None
    cache.unlock(cache.insert(tokens, pages, prefix, "salt"))
    return engine


@contextlib.contextmanager
def live_server(engine: FakeEngine, **settings):
    app = create_app(EngineHost(engine), ServerConfig(**settings))  # type: ignore[arg-type]
    with served_app(app) as url:
        yield url, app.state.live


async def first_event(url: str, headers: dict[str, str] | None = None) -> dict:
    async with httpx.AsyncClient() as client, client.stream("GET", f"{url}/live", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return json.loads((await anext(lines_of(response))).removeprefix("data: "))


async def lines_of(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line:
            yield line


async def test_an_event(engine: FakeEngine):
    with live_server(engine) as (url, _):
        event = await first_event(url)
    assert (event["stats"]["num_waiting"], event["stats"]["cache"]["num_free"]) == (2, 40)
    assert event["stats"]["counters"]["generated_tokens"] == 0
    assert (event["sequences"], event["page_size"], event["with_texts"]) == ([], 16, True)
    assert event["at_s"] > 0
    (node,) = event["tree"].pop("nodes")
    assert event["tree"] == {"num_nodes": 1, "num_tokens": 16, "num_roots": 1, "evicted": []}
    assert (node["parent"], node["num_tokens"], node["num_users"], node["text"]) == (0, 16, 0, TEXT[:16])
    assert set(node) == {
        *("id", "parent", "num_tokens", "num_pages", "num_users", "num_hits"),
        *("idle_s", "num_children", "namespace", "text"),
    }
    assert "salt" not in json.dumps(node)


@pytest.mark.parametrize(
    ("settings", "headers", "with_texts"),
    [
        ({}, {}, True),
        ({}, {"Host": "localhost:30000"}, True),
        ({}, {"Host": "rebound.example"}, False),
        ({}, {"X-Forwarded-For": "10.0.0.1"}, False),
        ({}, {"Host": "localhost:30000", "Origin": "http://localhost:30000"}, True),
        ({"cors_allow_origins": ("*",)}, {"Origin": "https://elsewhere.example"}, False),
        ({}, {"Host": "[]"}, False),
        ({"host": "::1"}, {"Host": "[::1]:30000"}, True),
        ({"host": "0.0.0.0"}, {}, False),
        ({"admin_api_key": "admin"}, {}, False),
        ({"admin_api_key": "admin"}, {"Authorization": "Bearer admin"}, True),
        ({"admin_api_key": "admin", "host": "0.0.0.0"}, {"Authorization": "Bearer admin"}, True),
        ({"admin_api_key": "admin", "api_key": "user"}, {"Authorization": "Bearer user"}, False),
        ({"live_view": "full", "host": "0.0.0.0"}, {}, True),
        ({"live_view": "tree"}, {}, False),
        ({"live_view": "tree", "admin_api_key": "admin"}, {"Authorization": "Bearer admin"}, False),
    ],
)
async def test_who_sees_texts(engine: FakeEngine, settings: dict, headers: dict[str, str], with_texts: bool):
    with live_server(engine, **settings) as (url, _):
        event = await first_event(url, headers)
    assert event["with_texts"] is with_texts
    (node,) = event["tree"]["nodes"]
    assert ("text" in node) is with_texts
    assert "first_tokens" not in node, "ids are as good as the text"


async def test_switched_off(engine: FakeEngine):
    with live_server(engine, live_view="off") as (url, _):
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{url}/live")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "live_view_off")
    assert engine.num_looks == 0


async def test_watching_has_no_time_limit(engine: FakeEngine):
    with live_server(engine, request_timeout_s=0.2) as (url, feed):
        feed._interval_s = 0.1
        async with httpx.AsyncClient() as client, client.stream("GET", f"{url}/live") as response:
            lines = lines_of(response)
            for _ in range(5):
                assert (await anext(lines)).startswith("data: {")


class Watcher:
    """Reads a feed's events without a server."""

    def __init__(self, feed: LiveFeed):
        self._stream = feed.watch(with_texts=True)
        self._task = asyncio.create_task(self._stream({"type": "http"}, self._receive, self._send))
        self._gone = asyncio.Event()
        self.events: asyncio.Queue[bytes] = asyncio.Queue()

    async def _receive(self):
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if body := message.get("body"):
            self.events.put_nowait(body)

    async def leave(self) -> None:
        self._gone.set()
        await self._task


async def test_watchers_share_one_producer_which_ends_with_the_last_of_them(engine: FakeEngine):
    feed = LiveFeed(EngineHost(engine), interval_s=0.01)  # type: ignore[arg-type]
    watchers = [Watcher(feed) for _ in range(3)]
    for _ in range(5):
        assert len({await watcher.events.get() for watcher in watchers}) == 1
    assert engine.num_looks <= 6
    for watcher in watchers[:2]:
        await watcher.leave()
    assert await watchers[2].events.get()
    await watchers[2].leave()
    await asyncio.sleep(0)
    looks = engine.num_looks
    await asyncio.sleep(0.05)
    assert engine.num_looks == looks, "somebody still looks"
    again = Watcher(feed)
    assert await again.events.get()
    await again.leave()


async def test_an_engine_that_fails_ends_the_stream_with_an_error(engine: FakeEngine):
    feed = LiveFeed(EngineHost(engine), interval_s=0.01)  # type: ignore[arg-type]
    watcher = Watcher(feed)
    assert b"num_running" in await watcher.events.get()
    engine.is_alive = False
    while b"error" not in (event := await watcher.events.get()):
        pass
    assert json.loads(event.split(b"\n\n")[0].removeprefix(b"data: "))["error"]["code"] == "engine_failed"
    await watcher.leave()
    engine.is_alive = True
    again = Watcher(feed)
    assert b"num_running" in await again.events.get()
    await again.leave()


async def test_a_server_that_stops_does_not_wait_for_who_watches(engine: FakeEngine):
    feed = LiveFeed(EngineHost(engine), interval_s=3600)  # type: ignore[arg-type]
    watchers = [Watcher(feed), Watcher(feed)]
    for watcher in watchers:
        await watcher.events.get()
    feed.close()
    late = Watcher(feed)
    for watcher in (*watchers, late):
        assert await watcher.events.get() == b"data: [DONE]\n\n"
        await watcher.leave()
