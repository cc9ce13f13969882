"""The page about the API: all of the document, and no scripts."""

from __future__ import annotations

import re

import httpx
import pytest
from sgjax_server.config import ServerConfig
from sgjax_server.docs_page import type_of

from .conftest import client_of
from .fakes import FakeEngine


async def test_page(client: httpx.AsyncClient):
    response = await client.get("/docs")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert not re.search(r"<script|<style| style=|https?://(?!www.w3.org)", response.text)
    document = (await client.get("/openapi.json")).json()
    for path in document["paths"]:
        assert f"<code>{path}</code>" in response.text
    ids = re.findall(r'id="([^"]+)"', response.text)
    assert len(ids) == len(set(ids))
    assert document["components"]["schemas"].keys() <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', response.text)) <= set(ids)
    assert (await client.get("/redoc")).status_code == 404
    for path in ("/docs", "/openapi.json"):
        assert (await client.head(path)).status_code == 200


async def test_it_needs_no_key_but_the_document_does(engine: FakeEngine):
    async with client_of(engine, ServerConfig(api_key="secret")) as client:
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/openapi.json")).status_code == 401


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "#/components/schemas/A"}, '<a href="#A">A</a>'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"type": "array", "items": {"const": "a"}}, "list of <code>&#34;a&#34;</code>"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {}]}, "[number, anything]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object of integer"),
        ({"type": "object", "additionalProperties": True}, "object"),
        ({"enum": [["<b>"]]}, "<code>[&#34;&lt;b&gt;&#34;]</code>"),
        ({"type": "string", "contentSchema": {"type": "object"}}, "stream of object"),
    ],
)
def test_types_in_words(schema: dict, text: str):
    assert type_of(schema) == text
