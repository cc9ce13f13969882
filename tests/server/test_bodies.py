"""Bodies that cannot be read: refused by every route that takes one, with the reason, in its API's shape."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

from .conftest import client_of
from .fakes import FakeEngine

JSON = {"Content-Type": "application/json"}


def _app(engine: FakeEngine, **settings):
    return create_app(EngineHost(engine), ServerConfig(**settings))  # type: ignore[arg-type]


def _client(engine: FakeEngine, **settings) -> httpx.AsyncClient:
    return client_of(engine, ServerConfig(**settings))


@functools.cache
def _document() -> dict:
    return _app(FakeEngine()).openapi()


def _routes() -> list[str]:
    return [path for path, methods in _document()["paths"].items() if "requestBody" in methods.get("post", {})]


def _message(answer: dict) -> str:
    """The message in any API's shape."""
    error = answer["error"]
    return error if isinstance(error, str) else error["message"]


UNREADABLE = {
    "nothing": (b"", "the body"),
    "no JSON": (b"{", "is not JSON"),
    "two values": (b"{} {}", "is not JSON"),
    "control character": (b'{"a": "\x00"}', "is not JSON"),
    "a string": (b'"text"', "the body"),
    "a list": (b"[1]", "the body"),
    "null": (b"null", "the body"),
    "bad UTF-8": (b'{"a": "\xff"}', "is not UTF-8, from byte 7 on"),
    "UTF-8 cut short": (b'{"a": "\xe2\x82', "is not UTF-8, from byte 7 on"),
    "lists without end": (b"[" * 100_000, "nested too deeply"),
    "objects without end": (b'{"a":' * 100_000, "nested too deeply"),
    "nested deeply": (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "an integer of more than 4300 digits"),
}


@pytest.mark.parametrize("path", _routes())
async def test_unreadable(engine: FakeEngine, path: str):
    async with _client(engine) as client:
        for name, (content, reason) in UNREADABLE.items():
            if name in ("nothing", "null") and not _body_of(path).get("required", False):
                continue
            response = await client.post(path, content=content, headers=JSON)
            assert response.status_code == 400, name
            assert reason in _message(response.json()), name
    assert engine.submitted == []


@pytest.mark.parametrize("path", _routes())
async def test_wrong_content_type(engine: FakeEngine, path: str):
    async with _client(engine) as client:
        for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "?"):
            # Ollama's routes ask for no type, but of a browser.
            headers = {"Origin": "http://localhost"} | ({} if kind is None else {"Content-Type": kind})
            response = await client.post(path, content=b'{"text": "a"}', headers=headers)
            assert response.status_code == 400, kind
            assert "application/json" in _message(response.json()), kind


@pytest.mark.parametrize("path", _routes())
@pytest.mark.parametrize("depth", [500, 3000, 9000])
async def test_fields_that_are_nested_deeply(engine: FakeEngine, path: str, depth: int):
    """As deep as the parser still reads, in every field that the route has."""
    nested = ["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]
    await _each_field_takes(engine, path, nested)


@pytest.mark.parametrize("path", _routes())
async def test_numbers_that_are_none(engine: FakeEngine, path: str):
    numbers = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 4000, "-1", "1e-400"]
    await _each_field_takes(engine, path, [*numbers, *(f"[{n}]" for n in numbers), *(f'{{"a":{n}}}' for n in numbers)])


@pytest.mark.parametrize("path", _routes())
async def test_lone_surrogates(engine: FakeEngine, path: str):
    """They are refused in every field; what only looks like one is not."""
    async with _client(engine) as client:
        for field in _fields(path):
            for text in (b"\\udfff", b"\\uD800x", b"\\\\\\ud83d", b"\\ude00\\ud83d", b"\xed\xbf\xbf"):
                content = b'{"%s":[{"a":"%s"}]}' % (field.encode(), text)
                for body in (content, content.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")):
                    response = await client.post(path, content=body, headers=JSON)
                    assert (response.status_code, _message(response.json())) == (400, f"{field}: is not valid Unicode")


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud83d", "😀", "\ud7a3"])
async def test_text_that_looks_like_lone_surrogates(engine: FakeEngine, text: str):
    async with _client(engine) as client:
        response = await client.post("/generate", content=f'{{"text": "{text}"}}', headers=JSON)
        assert response.status_code == 200
    assert bytes(engine.submitted[0].input_ids).decode() == json.loads(f'"{text}"')


@pytest.mark.parametrize("path", ["/generate", "/v1/messages", "/api/chat"])
async def test_compressed(engine: FakeEngine, path: str):
    async with _client(engine) as client:
        headers = {**JSON, "Content-Encoding": "gzip"}
        response = await client.post(path, content=gzip.compress(b'{"text": "a"}'), headers=headers)
        assert (response.status_code, response.headers["connection"]) == (415, "close")
        assert _message(response.json()).startswith("Content-Encoding: 'gzip' is not supported")
        fine = await client.post(
            "/generate", content=b'{"text": "a"}', headers={**JSON, "Content-Encoding": "identity"}
        )
        assert fine.status_code == 200


async def _each_field_takes(engine: FakeEngine, path: str, values: list[str]) -> None:
    """In a request that is fine otherwise, each value is used or refused, in each field."""
    fine = {"prompt": '"a"', "text": '"a"', "messages": '[{"role": "user", "content": "a"}]'}
    fields = _fields(path)
    base = {name: value for name, value in fine.items() if name in fields}
    async with _client(engine) as client:
        for field in fields:
            for value in values:
                content = ",".join(f'"{name}":{text}' for name, text in {**base, field: value}.items())
                response = await client.post(path, content=f"{{{content}}}", headers=JSON)
                assert response.status_code in (200, 400), (field, value[:20], response.text[:200])
                assert response.status_code == 200 or _message(response.json())


def _body_of(path: str) -> dict:
    return _document()["paths"][path]["post"]["requestBody"]


def _fields(path: str) -> list[str]:
    schema = _body_of(path)["content"]["application/json"]["schema"]
    reference = schema.get("anyOf", [schema])[0]["$ref"].rsplit("/")[-1]
    return list(_document()["components"]["schemas"][reference]["properties"])


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_too_long(engine: FakeEngine, path: str):
    async with _client(engine, max_request_bytes=100) as client:
        response = await client.post(path, content=b"x" * 101, headers=JSON)
        assert response.status_code == 413
        assert response.headers["connection"] == "close"
        assert "100 bytes" in _message(response.json())
        response = await client.post("/generate", content=json.dumps({"text": "a"}).ljust(100), headers=JSON)
        assert response.status_code == 200


async def test_too_long_in_pieces(engine: FakeEngine):
    """Without a Content-Length it is refused as soon as too much has come."""
    num_sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield b"x" * 30

    async with _client(engine, max_request_bytes=100) as client:
        response = await client.post("/generate", content=pieces(), headers=JSON)
        assert (response.status_code, num_sent) == (413, 4)


async def test_too_slow(engine: FakeEngine):
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text"'
        await asyncio.sleep(3600)

    async with _client(engine, request_body_timeout_s=0.05) as client:
        response = await client.post("/generate", content=pieces(), headers=JSON)
        assert response.status_code == 408
        assert "within 0.05 s" in _message(response.json())
