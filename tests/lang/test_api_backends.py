"""OpenAI's API, by its client, against a local server; and what all backends of APIs have in common."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import sgjax as sgl

from .api_servers import OpenAIServer, serving


@pytest.fixture
def api() -> Iterator[Any]:
    """Makes a backend of a server that gives these answers."""
    with contextlib.ExitStack() as stack:

        def make(answers: list[str], model: str = "gpt-4o", **options: Any) -> tuple[sgl.OpenAI, OpenAIServer]:
            server = stack.enter_context(serving(OpenAIServer(answers)))
            backend = sgl.OpenAI(model, base_url=f"{server.url}/v1", api_key="key", max_retries=0, **options)
            stack.callback(backend.client.close)
            return backend, server

        yield make


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
    with pytest.raises(ImportError, match=rf"pip install 'sgjax\[{module}\]'"):
        getattr(sgl, name)("model")
