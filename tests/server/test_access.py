"""Keys, and who may call what with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.middleware.access import OPEN_PATHS

from sgjax.config import ConfigError

from ..serving import served_app
from .conftest import client_of
from .fakes import FakeEngine

CONTROL = ["/flush_cache", "/server_info", "/get_server_info"]


def _client(engine: FakeEngine, **settings) -> httpx.AsyncClient:
    return client_of(engine, ServerConfig(**settings))


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, False),
        (_bearer("secret"), True),
        ({"authorization": "bearer  secret "}, True),
        ({"x-api-key": "secret"}, True),
        ({"x-api-key": "wrong", **_bearer("secret")}, True),  # a client of Anthropic's with a key of its own
        (_bearer("secre"), False),
        (_bearer("secret2"), False),
        (_bearer(""), False),
        ({"authorization": b"Bearer s\xe9cret"}, False),
        ({"authorization": "Basic secret"}, False),
        ({"authorization": "secret"}, False),
    ],
)
async def test_api_key(engine: FakeEngine, headers: dict, is_let_in: bool):
    async with _client(engine, api_key="secret") as client:
        for path in ("/v1/models", "/model_info", "/server_info", "/flush_cache", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == (200 if is_let_in else 401), path
        assert (await client.get("/nothing", headers=headers)).status_code == (404 if is_let_in else 401)
        response = await client.post("/generate", json={"text": "a"}, headers=headers)
        assert response.status_code == (200 if is_let_in else 401)
    assert len(engine.submitted) == is_let_in


async def test_probes_need_no_key(engine: FakeEngine):
    async with _client(engine, api_key="secret", admin_api_key="admin") as client:
        assert (await client.get("/health")).status_code == 200
        for path in OPEN_PATHS:
            assert (await client.get(path)).status_code != 401


async def test_admin_key(engine: FakeEngine):
    async with _client(engine, api_key="secret", admin_api_key="admin") as client:
        for path in CONTROL:
            assert (await client.get(path, headers=_bearer("admin"))).status_code == 200
            for headers in ({}, _bearer("secret")):
                refused = await client.get(path, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for key in ("secret", "admin"):
            assert (await client.get("/v1/models", headers=_bearer(key))).status_code == 200


async def test_admin_key_alone(engine: FakeEngine):
    async with _client(engine, admin_api_key="admin") as client:
        assert (await client.get("/v1/models")).status_code == 200
        for path in CONTROL:
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"x-api-key": "admin"})).status_code == 200


async def test_every_route_with_the_tag_needs_the_admin_key(engine: FakeEngine):
    async with _client(engine, admin_api_key="admin") as client:
        app = create_app(EngineHost(engine), ServerConfig())  # type: ignore[arg-type]
        tagged = [
            (method, path)
            for path, methods in app.openapi()["paths"].items()
            for method, operation in methods.items()
            if "control" in operation.get("tags", ())
        ]
        assert ("post", "/flush_cache") in tagged
        for method, path in tagged:
            response = await client.request(method, path, **({"json": {}} if method == "post" else {}))
            assert response.status_code == 401, (method, path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),  # a bookmark
        ({"Origin": "https://a.example"}, 200),
        ({"Origin": "https://b.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[]"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),  # an image's address
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
    ],
)
async def test_pages_of_other_sites_control_nothing(engine: FakeEngine, headers: dict, status: int):
    async with _client(engine, cors_allow_origins=("https://a.example",)) as client:
        assert (await client.get("/flush_cache", headers=headers)).status_code == status
    assert engine.num_flushes == (status == 200)


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("localhost:30000", {}, 200),
        ("127.0.0.1:30000", {}, 200),
        ("[::1]:30000", {}, 200),
        ("evil.example", {}, 403),
        ("127.0.0.1.evil.example:30000", {}, 403),
        ("localhost.evil.example", {}, 403),
        ("", {}, 403),
        ("evil.example", {"host": "::1"}, 403),
        ("server.example", {"host": "0.0.0.0"}, 200),
        ("server.example", {"admin_api_key": "admin"}, 200),
        ("server.example", {"api_key": "admin"}, 200),
    ],
)
async def test_a_name_that_was_made_to_lead_here(engine: FakeEngine, host: str, settings: dict, status: int):
    """Its pages are of the same origin, as the browser sees it."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin", **_bearer("admin")}
    async with _client(engine, **settings) as client:
        response = await client.post("/flush_cache", headers=headers)
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == "other_host"


async def test_no_body_is_read_for_a_stranger(engine: FakeEngine):
    async def body():
        raise AssertionError("the body was read")
        yield b""

    async with _client(engine, api_key="secret") as client:
        assert (await client.post("/generate", content=body())).status_code == 401


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error": {"type": "authentication_error", "code": "invalid_api_key", "param": None}}),
        ("/generate", {"error": {"type": "authentication_error", "code": "invalid_api_key", "param": None}}),
        ("/v1/messages", {"type": "error", "error": {"type": "authentication_error"}}),
        ("/v1/messages/count_tokens", {"type": "error", "error": {"type": "authentication_error"}}),
        ("/api/chat", {}),
    ],
)
async def test_shape_of_a_refusal(engine: FakeEngine, path: str, shape: dict):
    async with _client(engine, api_key="secret") as client:
        response = await client.post(path, json={})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    answer = response.json()
    message = answer["error"].pop("message") if shape else answer.pop("error")
    assert "Bearer" in message
    assert answer == shape


@pytest.fixture
def guarded_url(engine: FakeEngine) -> Iterator[str]:
    app = create_app(EngineHost(engine), ServerConfig(api_key="secret"))  # type: ignore[arg-type]
    with served_app(app) as url:
        yield url


def _refused(key: str, error: type[Exception]) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if key == "secret" else pytest.raises(error, match="valid key")


@pytest.mark.parametrize("key", ["secret", "wrong"])
def test_clients_of_each_api(guarded_url: str, key: str):
    """They bring the key in their own ways, and understand the refusal."""
    hello: Any = [{"role": "user", "content": "hi"}]
    with (
        openai.OpenAI(base_url=guarded_url + "/v1", api_key=key) as openai_client,
        anthropic.Anthropic(base_url=guarded_url, api_key=key) as anthropic_client,
        ollama.Client(guarded_url, headers={"Authorization": f"Bearer {key}"}) as ollama_client,
    ):
        with _refused(key, openai.AuthenticationError):
            openai_client.chat.completions.create(model="m", messages=hello)
        with _refused(key, anthropic.AuthenticationError):
            anthropic_client.messages.create(model="m", messages=hello, max_tokens=4)
        with _refused(key, ollama.ResponseError):
            ollama_client.chat(model="m", messages=hello)


def test_keys_from_the_environment(monkeypatch):
    monkeypatch.setenv("SGJAX_API_KEY", "secret")
    monkeypatch.setenv("SGJAX_ADMIN_API_KEY", "admin")
    config = ServerConfig()
    assert (config.api_key, config.admin_api_key) == ("secret", "admin")
    assert ServerConfig(api_key="given").api_key == "given"
    assert "secret" not in repr(config)


@pytest.mark.parametrize("key", ["", " ", "é", "a\nb"])
def test_keys_that_no_header_can_hold(key: str):
    with pytest.raises(ConfigError, match="api_key"):
        ServerConfig(api_key=key)


async def test_cors_is_off_unless_asked_for(engine: FakeEngine):
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with _client(engine) as client:
        assert (await client.options("/generate", headers=preflight)).status_code == 405
        response = await client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert "access-control-allow-origin" not in response.headers
    async with _client(engine, cors_allow_origins=("https://a.example",), api_key="secret") as client:
        response = await client.options("/generate", headers=preflight)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        response = await client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert (response.status_code, "access-control-allow-origin" in response.headers) == (401, True)
        assert (await client.options("/generate", headers={**preflight, "Origin": "https://b"})).status_code == 400
