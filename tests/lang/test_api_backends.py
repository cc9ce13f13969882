"""Backends of APIs: OpenAI's client against a local server, the others against stand-ins of their packages."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sgjax as sgl


class ApiServer(ThreadingHTTPServer):
    """OpenAI's wire format: answers in order, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, answers: list[str]):
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.answers = iter(answers)
        self.bodies: list[dict[str, Any]] = []


class ApiHandler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        is_chat = self.path.endswith("/chat/completions")
        if body.get("echo"):
            self._json([self._echo(index, text) for index, text in enumerate(body["prompt"])])
        elif body.get("stream"):
            self._stream(next(self.server.answers), is_chat)
        else:
            choices = []
            for index in range(body.get("n", 1)):
                text = next(self.server.answers)
                part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
                logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
                extra = {"logprobs": logprobs} if body.get("logprobs") and is_chat else {"logprobs": None}
                choices.append({"index": index, "finish_reason": "stop", **part, **extra})
            self._json(choices)

    def _echo(self, index: int, text: str) -> dict[str, Any]:
        """A token per character; digits are likelier the larger they are."""
        logprobs = {
            "tokens": list(text),
            "text_offset": list(range(len(text))),
            "token_logprobs": [None, *(int(c) - 10.0 if c.isdigit() else -20.0 for c in text[1:])],
        }
        return {"index": index, "finish_reason": "length", "text": text, "logprobs": logprobs}

    def _json(self, choices: list[dict[str, Any]]) -> None:
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}  # type: ignore[assignment]
        data = json.dumps({"id": "1", "object": "x", "created": 1, "model": "m", "choices": choices, "usage": usage})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())

    def _stream(self, text: str, is_chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for letter in text:
            choice = {"delta": {"content": letter}} if is_chat else {"text": letter}
            chunk = {"id": "1", "object": "x", "created": 1, "model": "m", "choices": [{"index": 0, **choice}]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        usage = {"prompt_tokens": 7, "completion_tokens": len(text), "total_tokens": 9}
        chunk = {"id": "1", "object": "x", "created": 1, "model": "m", "choices": [], "usage": usage}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")


@pytest.fixture
def api() -> Iterator[Any]:
    """Makes a backend of a server that gives these answers."""
    servers, backends = [], []

    def make(answers: list[str], model: str = "gpt-4o", **options: Any) -> tuple[sgl.OpenAI, ApiServer]:
        server = ApiServer(answers)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        backends.append(sgl.OpenAI(model, base_url=url, api_key="key", max_retries=0, **options))
        return backends[-1], server

    yield make
    for backend in backends:
        backend.client.close()
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@sgl.function
def two_turns(s):
    s += sgl.system("Brief.")
    s += sgl.user("a")
    s += sgl.assistant(sgl.gen("x", max_tokens=5, stop=["\n"]))
    s += sgl.user(sgl.image("https://host/cat.png") + "b")
    s += sgl.assistant(sgl.gen("y"))


@pytest.mark.parametrize("stream", [False, True])
def test_chat(api, stream: bool):
    backend, server = api(["one", "two"])
    state = two_turns.run(backend=backend, stream=stream, temperature=0.5)
    assert (state["x"], state["y"]) == ("one", "two")
    first, second = server.bodies
    assert first["messages"] == [{"role": "system", "content": "Brief."}, {"role": "user", "content": "a"}]
    assert (first["max_tokens"], first["stop"], first["temperature"]) == (5, ["\n"], 0.5)
    assert second["messages"][2] == {"role": "assistant", "content": "one"}
    assert second["messages"][3]["content"] == [
        {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
        {"type": "text", "text": "b"},
    ]
    assert state.text() == "SYSTEM:Brief.\nUSER:a\nASSISTANT:one\nUSER:b\nASSISTANT:two\n"
    assert state.usage().prompt_tokens == 14
    assert state.get_meta_info("x")["completion_tokens"] == (3 if stream else 2)


def test_samples_and_options(api):
    backend, server = api(["1", "2", "{}"])
    s = sgl.function(lambda s: None).run(backend=backend, seed=3)
    s += sgl.user("a") + sgl.assistant(sgl.gen("x", n=2, top_k=4, return_logprob=True, regex="[0-9]"))
    assert s["x"] == ["1", "2"]
    (body,) = server.bodies
    assert (body["n"], body["seed"], body["top_k"], body["regex"], body["logprobs"]) == (2, 3, 4, "[0-9]", True)
    assert s.get_meta_info("x")[0]["output_token_logprobs"] == [(-0.5, None, "1")]
    assert s.usage().prompt_tokens == 7
    s += sgl.user("b") + sgl.assistant(sgl.gen("y", json_schema='{"type": "object"}'))
    assert s["y"] == "{}"
    assert server.bodies[1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_reasoning_models_take_fewer_options(api):
    backend, server = api(["x"], "o3-mini")
    s = sgl.function(lambda s: s.append(sgl.user("a") + sgl.assistant(sgl.gen("x")))).run(backend=backend)
    s.sync()
    assert sorted(server.bodies[0]) == ["max_completion_tokens", "messages", "model"]


def test_types(api):
    backend, _ = api(["It is 42, I think.", "none"])
    s = sgl.function(lambda s: None).run(backend=backend)
    s += sgl.user("a") + sgl.assistant(sgl.gen_int("x")) + sgl.user("b") + sgl.assistant(sgl.gen_int("y"))
    assert s["x"] == "42"
    with pytest.raises(sgl.ProgramError, match="of type int, and wrote 'none'"):
        s["y"]


def test_a_chat_api_cannot_go_on_with_a_turn(api):
    backend, _ = api(["x"])
    s = sgl.function(lambda s: s.append(sgl.user("a") + sgl.assistant("So " + sgl.gen("x")))).run(backend=backend)
    with pytest.raises(sgl.ProgramError, match="num_api_spec_tokens"):
        s["x"]
    s = sgl.function(lambda s: s.append(sgl.user("a") + sgl.select("x", ["b"]))).run(backend=backend)
    with pytest.raises(sgl.ProgramError, match="cannot be scored"):
        s["x"]


@sgl.function(num_api_spec_tokens=64)
def character(s):
    s += sgl.user("Describe someone.")
    with s.assistant():
        s += "Name: " + sgl.gen("name", stop="\n") + "\nJob: " + sgl.gen("job", stop="\n", max_tokens=8)


def test_a_whole_turn_in_one_request(api):
    backend, server = api(["Nam? Ada", "Name: Ada\nJob: poet\nAge: 3"])
    state = character.run(backend=backend)
    assert (state["name"], state["job"]) == ("Ada", "poet")
    assert state.messages()[-1]["content"] == "Name: Ada\nJob: poet"
    assert [body["max_tokens"] for body in server.bodies] == [128, 128]  # the first answer did not fit
    backend, server = api(["no"] * 3)
    with pytest.raises(sgl.ProgramError, match="does not follow the program's turn: 'no'"):
        character.run(backend=backend)["name"]
    assert len(server.bodies) == 3
    s = sgl.function(num_api_spec_tokens=8)(lambda s: None).run(backend=backend)
    s += sgl.assistant_begin() + sgl.gen("x")
    with pytest.raises(ValueError, match="cannot be forked"):
        s.fork(2)


def test_a_completion_model(api):
    backend, server = api(["Ada", " King"], "gpt-3.5-turbo-instruct")
    s = sgl.function(lambda s: s.append("Name: " + sgl.gen("x") + sgl.gen("y", stop="."))).run(backend=backend)
    assert s.text() == "Name: Ada King"
    assert [body["prompt"] for body in server.bodies] == ["Name: ", "Name: Ada"]


def test_a_completion_model_writes_ahead(api):
    backend, server = api([" Ada\nJob: poet\nAge: 3", "?"], "any", is_chat_model=False)

    @sgl.function(num_api_spec_tokens=64)
    def program(s):
        s += "Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job", stop="\n") + "\nCity:"
        s += sgl.gen("city", stop="\n")

    state = program.run(backend=backend, max_new_tokens=4)
    assert (state["name"], state["job"], state["city"]) == (" Ada", " poet", "?")
    assert state.text() == "Name: Ada\nJob: poet\nCity:?"
    assert [(body["prompt"], body["max_tokens"]) for body in server.bodies] == [
        ("Name:", 64),
        ("Name: Ada\nJob: poet\nCity:", 64),
    ]
    assert "stop" not in server.bodies[0]


@pytest.mark.parametrize("method", [sgl.token_length_normalized, sgl.unconditional_likelihood_normalized])
def test_a_completion_model_selects(api, method):
    backend, _ = api([], "any", is_chat_model=False)
    s = sgl.function(lambda s: s.append("1+1=" + sgl.select("x", ["12", "29", "2"], 0.0, method))).run(backend=backend)
    assert s["x"] == "29"
    assert s.get_meta_info("x")["normalized_prompt_logprobs"] == [-8.5, -4.5, -8.0]


def test_what_apis_lack(api):
    backend, _ = api([])
    for call in (backend.flush_cache, lambda: backend.prefill(None)):  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError):
            call()
    assert sgl.get_server_info(backend) == {"model_path": "gpt-4o"}


@pytest.mark.parametrize(("name", "module"), [("Anthropic", "anthropic"), ("LiteLLM", "litellm"), ("OpenAI", "openai")])
def test_a_missing_package(name: str, module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {module}"):
        getattr(sgl, name)("model")


# --- Anthropic ------------------------------------------------------------------------------------------------


class AnthropicMessages:
    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def create(self, **request: Any) -> Any:
        self.requests.append(request)
        usage = SimpleNamespace(input_tokens=5, output_tokens=2, cache_read_input_tokens=3)
        content = [SimpleNamespace(type="text", text="one"), SimpleNamespace(type="other")]
        return SimpleNamespace(content=content, usage=usage, stop_reason="end_turn")

    def stream(self, **request: Any) -> Any:
        final = self.create(**request)

        class Stream:
            text_stream = ("o", "ne")

            def __enter__(self):
                return self

            def __exit__(self, *exc: object) -> None:
                pass

            def get_final_message(self):
                return final

        return Stream()


@pytest.fixture
def anthropic_backend(monkeypatch: pytest.MonkeyPatch) -> sgl.Anthropic:
    module: Any = ModuleType("anthropic")
    module.Anthropic = lambda **options: SimpleNamespace(messages=AnthropicMessages(), options=options)
    monkeypatch.setitem(sys.modules, "anthropic", module)
    return sgl.Anthropic("claude", api_key="key")


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(anthropic_backend: sgl.Anthropic, stream: bool):
    @sgl.function
    def program(s):
        s += sgl.system("Brief.") + sgl.user(sgl.image(b"png") + "a")
        s += sgl.assistant(sgl.gen("x", stop="\n", top_k=3))

    state = program.run(backend=anthropic_backend, stream=stream)
    assert state["x"] == "one"
    (request,) = anthropic_backend.client.messages.requests
    assert (request["system"], request["max_tokens"], request["stop_sequences"]) == ("Brief.", 128, ["\n"])
    (message,) = request["messages"]
    assert message["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"}},
        {"type": "text", "text": "a"},
    ]
    meta = state.get_meta_info("x")
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["finish_reason"]) == (8, 3, {"type": "end_turn"})


def test_anthropic_has_no_grammars(anthropic_backend: sgl.Anthropic):
    s = sgl.function(lambda s: s.append(sgl.user("a") + sgl.assistant(sgl.gen("x", regex="a"))))
    with pytest.raises(sgl.ProgramError, match="regex is not in Anthropic's API"):
        s.run(backend=anthropic_backend)["x"]


# --- litellm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_litellm(monkeypatch: pytest.MonkeyPatch, stream: bool):
    requests: list[dict[str, Any]] = []
    usage = SimpleNamespace(prompt_tokens=5, completion_tokens=2)

    def completion(**request: Any) -> Any:
        requests.append(request)
        if request.get("stream"):
            chunks = [
                SimpleNamespace(delta=SimpleNamespace(content=piece), finish_reason=None) for piece in ("o", "ne")
            ]
            return [SimpleNamespace(choices=[chunk], usage=usage) for chunk in chunks]
        message = SimpleNamespace(content="one")
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")], usage=usage)

    module: Any = ModuleType("litellm")
    module.completion = completion
    monkeypatch.setitem(sys.modules, "litellm", module)
    backend = sgl.LiteLLM("anthropic/claude", api_key="key", base_url=None)
    state = sgl.function(lambda s: s.append(sgl.user("a") + sgl.assistant(sgl.gen("x", top_k=2))))
    state = state.run(backend=backend, stream=stream)
    assert state["x"] == "one"
    assert state.usage().completion_tokens == 2
    (request,) = requests
    assert (request["model"], request["api_key"], request["top_k"]) == ("anthropic/claude", "key", 2)
    assert "base_url" not in request
