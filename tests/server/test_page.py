"""The page's files: all there, all ours, and nothing that the browser would have to get elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
import sgjax_server
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost

STATIC = Path(sgjax_server.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())
REFERENCE = re.compile(r"""(?:src|href|from)\s*=?\s*["']([^"'#]+)["']""")


async def test_page(client: httpx.AsyncClient):
    response = await client.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.text == (STATIC / "index.html").read_text()
    assert (await client.head("/")).status_code == 200


@pytest.mark.parametrize("name", FILES)
async def test_files(client: httpx.AsyncClient, name: str):
    response = await client.get(f"/static/{name}")
    assert response.status_code == 200
    kinds = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert response.headers["content-type"].split(";")[0] == kinds[Path(name).suffix]
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|http|\*|data:", policy)
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", FILES)
async def test_nothing_comes_from_elsewhere(client: httpx.AsyncClient, name: str):
    text = (STATIC / name).read_text()
    assert len(text.splitlines()) < 400
    addresses = set(re.findall(r"(?:https?:)?//\w[\w.]+\w", re.sub(r"(?m)^\s*//.*$", "", text)))
    assert addresses <= {"http://www.w3.org"}, "the name of SVG's vocabulary, which nobody fetches"
    for path in REFERENCE.findall(text):
        assert (await client.get(path)).status_code == 200, path
    assert not re.search(r"\bon\w+=\"|<style|<script>| style=\"|innerHTML|eval\(", text), "the policy would refuse it"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fconfig.py", "../config.py", "%2e%2e/config.py"])
async def test_other_files_are_not_served(client: httpx.AsyncClient, name: str):
    assert (await client.get(f"/static/{name}")).status_code == 404


async def test_the_page_asks_for_the_key_itself(engine):
    app = create_app(EngineHost(engine), ServerConfig(api_key="secret"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/", "/static/app.js"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/live")).status_code == 401


async def test_the_page_is_there_while_the_model_loads():
    transport = httpx.ASGITransport(create_app(EngineHost(), ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/live")).status_code == 503
