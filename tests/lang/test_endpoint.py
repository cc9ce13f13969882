"""`RuntimeEndpoint` against this project's server with a real engine, and against answers as SGLang gives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import sgjax
import sgjax as sgl
from sgjax.lang.backends.http import EndpointError
from sgjax.lang.chat_format import FIXED_FORMATS

from ..serving import served

GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def shared_engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    """One of this module's own, because the server closes it."""
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_engine: sgjax.Engine) -> Iterator[str]:
    with served(shared_engine) as url:
        yield url


@pytest.fixture
def endpoint(url: str, engine: sgjax.Engine) -> sgl.RuntimeEndpoint:
    return sgl.RuntimeEndpoint(url + "/")


@sgl.function
def conversation(s, question):
    s += sgl.system("Be brief.") + sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=6, return_logprob=True, top_logprobs_num=1))
    forks = s.fork(2)
    forks += lambda i: sgl.user(f"{i}?") + sgl.assistant(sgl.gen("more", max_tokens=3))
    forks.join()
    s += sgl.user("Yes or no?") + sgl.assistant_begin() + sgl.select("choice", choices=["Yes", "No way"])
    s += sgl.assistant_end()


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_does_what_the_engine_does(endpoint: sgl.RuntimeEndpoint, engine: sgjax.Engine, stream: bool):
    far = conversation.run(question="Why?", backend=endpoint, stream=stream, **GREEDY)
    near = conversation.run(question="Why?", backend=engine, **GREEDY)
    assert far.text() == near.text()
    assert far["more"] == near["more"]
    ours, theirs = near.get_meta_info("choice"), far.get_meta_info("choice")
    assert theirs["normalized_prompt_logprobs"] == pytest.approx(ours["normalized_prompt_logprobs"], rel=1e-3)
    logprobs = [far.get_meta_info("answer")["output_token_logprobs"], near.get_meta_info("answer")[
        "output_token_logprobs"]]  # fmt: skip
    assert [token for _, token, _ in logprobs[0]] == [token for _, token, _ in logprobs[1]]


def test_pieces_of_a_stream(endpoint: sgl.RuntimeEndpoint):
    state = conversation.run(question="Why?", backend=endpoint, stream=True, **GREEDY)
    assert "".join(state.text_iter()) == state.text()


def test_samples_and_batches(endpoint: sgl.RuntimeEndpoint):
    program = sgl.function(lambda s, text: s.append(text + sgl.gen("x", max_tokens=2, n=3, ignore_eos=True)))
    states = program.run_batch([("a",), ("b",)], backend=endpoint)
    assert [len(state["x"]) for state in states] == [3, 3]


@pytest.mark.parametrize("method", [sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized])
def test_other_choice_methods(endpoint: sgl.RuntimeEndpoint, engine: sgjax.Engine, method):
    program = sgl.function(lambda s: s.append("The answer is " + sgl.select("x", ["yes", "no"], 0.0, method)))
    far, near = (program.run(backend=backend) for backend in (endpoint, engine))
    assert far["x"] == near["x"]
    for key, value in near.get_meta_info("x").items():
        if "normalized" in key:
            assert far.get_meta_info("x")[key] == pytest.approx(value, rel=1e-3)


def test_the_cache_and_the_server(endpoint: sgl.RuntimeEndpoint, engine: sgjax.Engine):
    endpoint.cache_prefix("A long beginning. " * 20)
    assert engine.stats().cache.num_cached > 0
    sgl.flush_cache(endpoint)
    assert engine.stats().cache.num_cached == 0
    assert sgl.get_server_info(endpoint)["version"] == sgjax.__version__
    assert endpoint.get_model_name() == engine.config.model_path


def test_a_refused_request(endpoint: sgl.RuntimeEndpoint):
    state = sgl.function(lambda s: s.append("a" + sgl.gen("x", temperature=-1))).run(backend=endpoint)
    with pytest.raises(sgl.ProgramError, match=r"answered 400: .*temperature"):
        state["x"]


def test_nobody_there():
    with pytest.raises(EndpointError, match="cannot be reached"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9")


# --- another server -------------------------------------------------------------------------------------------


class OtherServer(ThreadingHTTPServer):
    """Answers /generate with its prompt's length; knows what SGLang's /model_info tells."""

    daemon_threads = True

    def __init__(self, info: dict[str, Any] | None, adds_bos: bool = False):
        super().__init__(("127.0.0.1", 0), OtherHandler)
        self.info = info
        self.adds_bos = adds_bos
        self.bodies: list[dict[str, Any]] = []
        self.broken_stream = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        meta = {"prompt_tokens": 1 + self.adds_bos, "completion_tokens": 1, "finish_reason": {"type": "stop"}}
        return {"text": "word", "meta_info": meta}


class OtherHandler(BaseHTTPRequestHandler):
    server: OtherServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/get_model_info" or self.server.info is None:
            self._send(404, {"detail": "Not Found"})
        else:
            self._send(200, self.server.info)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append({**body, "authorization": self.headers.get("Authorization")})
        if not body.get("stream"):
            self._send(200, self.server.answer(body))
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"data: " + json.dumps(self.server.answer(body)).encode() + b"\n\n")
        if not self.server.broken_stream:
            self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def other() -> Iterator[OtherServer]:
    server = OtherServer({"model_path": "meta-llama/Llama-3.1-8B-Instruct"})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(state: sgl.ProgramState) -> None:
    state += sgl.user("a") + sgl.assistant(sgl.gen("x", max_tokens=3, stop="\n", dtype="int"))
    state.sync()


def test_what_a_server_of_sglang_is_sent(other: OtherServer):
    state = sgl.function(asked).run(backend=sgl.RuntimeEndpoint(other.url, api_key="key"))
    assert state["x"] == "word"
    (body,) = other.bodies
    assert body["text"] == (
        "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert body["sampling_params"] == {
        "max_new_tokens": 3,
        "temperature": 1.0,
        "stop": ["\n", " ", "\n"],
        "regex": r"[+-]?[0-9]+[ \n]?",
    }
    assert body["authorization"] == "Bearer key"


def test_templates_of_servers_that_do_not_tell(other: OtherServer):
    other.info = None
    assert sgl.RuntimeEndpoint(other.url).chat_format is FIXED_FORMATS["default"]
    assert sgl.RuntimeEndpoint(other.url, chat_template_name="chatml").chat_format is FIXED_FORMATS["chatml"]
    with pytest.raises(ValueError, match="neither Jinja nor one of"):
        sgl.RuntimeEndpoint(other.url, chat_template="nonsense")
    with pytest.raises(ValueError, match="not Jinja"):
        sgl.RuntimeEndpoint(other.url, chat_template="{% if %}")


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_sent_once(other: OtherServer, adds_bos: bool):
    other.adds_bos = adds_bos
    source = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    other.info = {"chat_template": source, "bos_token": "<s>", "eos_token": None}
    endpoint = sgl.RuntimeEndpoint(other.url)
    for _ in range(2):
        state = sgl.function(asked).run(backend=endpoint)
        assert state.text() == "<s>aword"
    assert [body["text"] for body in other.bodies] == ["<s>", *(["a" if adds_bos else "<s>a"] * 2)]


def test_a_template_that_refuses(other: OtherServer):
    other.info = {"chat_template": "{{ raise_exception('not me') }}"}
    state = sgl.function(asked).run(backend=sgl.RuntimeEndpoint(other.url))
    with pytest.raises(sgl.ProgramError, match="not me"):
        state["x"]


def test_a_stream_that_breaks(other: OtherServer):
    other.broken_stream = True
    state = sgl.function(asked).run(backend=sgl.RuntimeEndpoint(other.url), stream=True)
    with pytest.raises(sgl.ProgramError, match="ended its stream early"):
        state.text()
