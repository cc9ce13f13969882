"""What is logged of requests, in which form, and that it holds nothing that was not asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sgjax_server.config import ServerConfig
from sgjax_server.logs import JsonFormatter, TextFormatter, set_up_logging

from .conftest import client_of
from .fakes import FakeEngine

LOGGER = logging.getLogger("sgjax_server.middleware.request_log")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def take(self) -> list[dict[str, Any]]:
        taken, self.records = self.records, []
        return [record.facts for record in taken]  # type: ignore[attr-defined]


@pytest.fixture
def lines() -> Iterator[_Lines]:
    handler, level = _Lines(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def _client(engine: FakeEngine, **settings) -> httpx.AsyncClient:
    return client_of(engine, ServerConfig(**settings))


async def test_off_unless_asked_for(engine: FakeEngine, lines: _Lines):
    async with _client(engine) as client:
        await client.post("/generate", json={"text": "a"})
    assert lines.take() == []


@pytest.mark.parametrize("stream", [False, True])
async def test_metadata(engine: FakeEngine, lines: _Lines, stream: bool):
    async with _client(engine, log_requests="metadata") as client:
        await client.get("/health")
        await client.post("/generate", json={"text": "private", "rid": "r", "stream": stream})
        (line,) = lines.take()
        assert 0 <= line.pop("first_byte_s") <= line.pop("total_s")
        assert line == {
            "route": "POST /generate",
            "status": 200,
            "id": "r",
            "prompt_tokens": 7,
            "cached_tokens": 2,
            "completion_tokens": 12,
            "finish": "stop",
        }
        await client.post("/v1/completions", json={"prompt": ["private", "b"], "n": 2, "max_tokens": 1, "rid": "r"})
        (line,) = lines.take()
        assert (line["id"], line["prompt_tokens"], line["completion_tokens"]) == (["r_0", "r_1"], 8, 4)
        assert line["finish"] == "length"


async def test_requests_that_fail(engine: FakeEngine, lines: _Lines):
    async with _client(engine, log_requests="metadata", api_key="secret") as client:
        await client.get("/v1/models")
        headers = {"x-api-key": "secret"}
        await client.post("/generate", json={"text": "private", "private": 1}, headers=headers)
        engine.error = ValueError("private")
        await client.post("/generate", json={"text": "private", "stream": True}, headers=headers)
        refused, bad, failed = lines.take()
        assert (refused["route"], refused["status"]) == ("GET /v1/models", 401)
        assert (bad["status"], "id" in bad) == (400, False)
        assert (failed["status"], failed["finish"]) == (200, "unfinished")
        assert not any("private" in str(line) or "secret" in str(line) for line in (refused, bad, failed))


@pytest.mark.parametrize("stream", [False, True])
async def test_full(engine: FakeEngine, lines: _Lines, stream: bool):
    async with _client(engine, log_requests="full") as client:
        await client.post("/generate", json={"text": "private", "stream": stream})
        (line,) = lines.take()
        assert line["request"].startswith('{"text":"private"')
        assert ("data: [DONE]" if stream else '{"text":"Hello world"') in line["response"]
        await client.post("/generate", json={"text": "private" * 20_000})
        (line,) = lines.take()
        assert len(line["request"]) == 64 * 1024


async def test_changed_while_it_runs(engine: FakeEngine, lines: _Lines):
    async with _client(engine, admin_api_key="admin") as client:

        async def change(**body: Any) -> httpx.Response:
            lines.take()
            return await client.post("/configure_logging", json=body, headers={"x-api-key": "admin"})

        assert (await client.post("/configure_logging", json={"log_requests": True})).status_code == 401
        for body, detail in [
            ({"log_requests_level": 3}, "off"),
            ({"log_requests": True}, "metadata"),
            ({"log_requests_level": 2}, "full"),
            ({}, "full"),
            ({"log_requests": True, "log_requests_level": 1}, "metadata"),
            ({"log_requests": "full"}, "full"),
            ({"log_requests": False, "log_requests_level": 3}, "off"),
        ]:
            assert (await change(**body)).json() == {"log_requests": detail}
            lines.take()
            await client.post("/generate", json={"text": "a"})
            assert [("request" in line) for line in lines.take()] == {"off": [], "metadata": [False], "full": [True]}[
                detail
            ]
        for body in ({"log_requests_level": 4}, {"log_requests": "some"}, {"dump_requests_folder": "/tmp"}):
            refused = await change(**body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(body)))


@pytest.fixture
def process_logging() -> Iterator[None]:
    """Puts back what `set_up_logging` changes."""
    root, names = logging.getLogger(), ("sgjax", "sgjax_server", "uvicorn")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in names}
    root_level = root.level
    yield
    root.handlers[:], root.level = handlers, root_level
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_set_up(process_logging, capsys, log_format: str):
    set_up_logging("warning", log_format)
    logger = logging.getLogger("sgjax_server.some")
    logger.info("quiet")
    logger.warning("a %s\nb", "message", extra={"facts": {"id": "r"}})
    err = capsys.readouterr().err
    if log_format == "json":
        (line,) = err.splitlines()
        assert json.loads(line)["message"] == "a message\nb"
    else:
        assert err.endswith("WARNING sgjax_server.some: a message\nb id=r\n")


def _record(**facts: Any) -> logging.LogRecord:
    record = LOGGER.makeRecord("sgjax_server", logging.INFO, __file__, 1, "request", (), None)
    record.facts = facts
    return record


def test_text_form():
    line = TextFormatter().format(_record(id="a b", status=200, ids=["x"], none=None, empty="", text="1\n2"))
    assert line.endswith(r' INFO sgjax_server: request id="a b" status=200 ids="[\"x\"]" empty="" text="1\n2"')


def test_json_form():
    try:
        raise ValueError("why")
    except ValueError as error:
        record = _record(id="é", status=200)
        record.exc_info = (ValueError, error, error.__traceback__)
    record.created = 0.25
    record.msecs = 250.0
    line = json.loads(JsonFormatter().format(record))
    assert line.pop("exception").endswith("ValueError: why")
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "sgjax_server",
        "message": "request",
        "id": "é",
        "status": 200,
    }
