"""The OpenAPI document: what it says of every route, and that its examples work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sgjax_server.app import _ROUTES, create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.routes import unserved

from .fakes import FakeEngine

# What is for people, and SGLang's older names.
HIDDEN = {
    *("/", "/static/{name}", "/live", "/docs", "/openapi.json"),
    *("/get_model_info", "/get_server_info", "/get_load", "/v1/tokenize", "/v1/detokenize"),
}


@functools.cache
def _app() -> FastAPI:
    return create_app(EngineHost(FakeEngine()), ServerConfig())  # type: ignore[arg-type]


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in _app().openapi()["paths"].items():
        for operation in operations.values():
            yield path, operation


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that one refers to; of a body that may be left out, the first."""
    name = schema.get("anyOf", [schema])[0]["$ref"].rpartition("/")[2]
    return _app().openapi()["components"]["schemas"][name]


def _bodies() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for path, operation in _operations():
        if "requestBody" in operation:
            yield path, operation, _resolved(operation["requestBody"]["content"]["application/json"]["schema"])


def _examples() -> list[tuple[str, dict[str, Any]]]:
    return [(path, example) for path, _, schema in _bodies() for example in schema.get("examples", [])]


def test_every_route_is_there():
    routers = [module.router for module in _ROUTES] + [unserved.control]
    routes = {route.path.replace(":path}", "}") for router in routers for route in router.routes}  # type: ignore[attr-defined]
    assert routes - {path for path, _ in _operations()} == HIDDEN


def test_operations_are_described():
    document = _app().openapi()
    tags = {tag["name"] for tag in document["tags"]}
    for path, operation in _operations():
        assert operation["summary"], path
        assert set(operation["tags"]) <= tags, path
        for response in operation["responses"].values():
            assert response["description"], path
        assert "422" not in operation["responses"], path
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_errors_have_the_shape_of_their_api():
    for path, operation in _operations():
        api = "Anthropic" if path.startswith("/v1/messages") else "Ollama" if path.startswith("/api/") else "OpenAI"
        for status in ("4XX", "5XX"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{api}Error"}, path


def test_streams_are_described():
    streaming = {path: operation for path, operation, schema in _bodies() if "stream" in schema["properties"]}
    assert {"/generate", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"} <= streaming.keys()
    for path, operation in streaming.items():
        kind = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
        assert operation["responses"]["200"]["content"].keys() == {"application/json", kind}, path


def test_fields_that_are_not_read_are_described():
    (schema,) = (schema for path, _, schema in _bodies() if path == "/v1/chat/completions")
    assert schema["additionalProperties"] is False
    assert schema["properties"]["user"]["description"].startswith("Ignored")
    assert schema["properties"]["modalities"]["enum"] == [["text"]]


@pytest.mark.parametrize(("path", "example"), _examples(), ids=lambda value: value if isinstance(value, str) else "")
async def test_example(client: httpx.AsyncClient, path: str, example: dict[str, Any]):
    assert (await client.post(path, json=example)).status_code == 200


def test_what_generates_has_an_example():
    generating = {path for path, _, schema in _bodies() if "stream" in schema["properties"]}
    assert generating <= {path for path, _ in _examples()}
