"""Anthropic's API, by its client, against a local server that speaks it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sgjax as sgl
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

from .api_servers import AnthropicServer, Refusal, serving

Make = Callable[..., tuple[sgl.Anthropic, AnthropicServer]]


@pytest.fixture
def api() -> Iterator[Make]:
    """Makes a backend of a server that gives these answers."""
    with contextlib.ExitStack() as stack:

        def make(*answers: str | Refusal, max_retries: int = 0) -> tuple[sgl.Anthropic, AnthropicServer]:
            server = stack.enter_context(serving(AnthropicServer(answers)))
            backend = sgl.Anthropic("claude-x", base_url=server.url, api_key="key", max_retries=max_retries)
            stack.callback(backend.client.close)
            return backend, server

        yield make


@sgl.function
def ask(s, **options):
    s += sgl.user("a") + sgl.assistant(sgl.gen("x", **options))


@pytest.mark.parametrize("stream", [False, True])
def test_turns(api: Make, stream: bool):
    @sgl.function
    def program(s):
        s += sgl.system("Brief.") + sgl.user(sgl.image(b"png") + "a")
        s += sgl.assistant(sgl.gen("x", max_tokens=20, stop=["END", "\n"]))
        s += sgl.system("Be kind.")
        s += sgl.user(sgl.image("https://host/cat.png") + "b") + sgl.assistant(sgl.gen("y", max_tokens=3))

    backend, server = api("one END two", "Grüße")
    state = program.run(backend=backend, stream=stream)
    assert (state["x"], state["y"]) == ("one ", "Grü")
    assert state.text() == "SYSTEM:Brief.\nUSER:a\nASSISTANT:one \nSYSTEM:Be kind.\nUSER:b\nASSISTANT:Grü\n"
    first, second = server.bodies
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"}}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "a"}]}
    streamed = {"stream": True} if stream else {}
    assert first == {
        "model": "claude-x",
        "max_tokens": 20,
        "system": "Brief.",
        "messages": [question],
        "stop_sequences": ["END"],
        **streamed,
    }
    linked = {"type": "image", "source": {"type": "url", "url": "https://host/cat.png"}}
    assert second == {
        "model": "claude-x",
        "max_tokens": 3,
        "system": "Brief.\n\nBe kind.",
        "messages": [
            question,
            {"role": "assistant", "content": "one "},
            {"role": "user", "content": [linked, {"type": "text", "text": "b"}]},
        ],
        **streamed,
    }
    assert server.headers[0]["authorization"] == "Bearer key"
    assert state.get_meta_info("x") == {
        "prompt_tokens": 10,
        "cached_tokens": 3,
        "completion_tokens": 4,
        "finish_reason": {"type": "stop_sequence"},
    }
    assert state.get_meta_info("y")["finish_reason"] == {"type": "max_tokens"}
    usage = state.usage()
    assert (usage.num_requests, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (2, 20, 6, 7)


def test_text_comes_as_it_grows(api: Make):
    backend, _ = api("Grüße 👋", "Grüße 👋")
    prompt = Prompt("", ({"role": "user", "content": "a"},), "assistant")
    texts = [completion.text for completion in backend.stream(prompt, Sampling(max_new_tokens=20))]
    assert texts == [*("Grüße 👋"[:end] for end in range(1, 8)), "Grüße 👋"]
    assert "".join(ask.run(backend=backend, stream=True).text_iter("x")) == "Grüße 👋"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "expected"), [("one\ntwo\n\nthree", "one\ntwo"), ("one\n", "one\n"), ("\n\n", ""), ("one", "one")]
)
def test_the_api_takes_no_blank_stop(api: Make, answer: str, expected: str, stream: bool):
    """The answer is cut here; what a stream has shown is never taken back."""
    backend, server = api(answer, "next")
    state = ask.run(backend=backend, stream=stream, stop=["\n\n", "END"])
    assert "".join(state.text_iter("x")) == state["x"] == expected
    assert server.bodies[0]["stop_sequences"] == ["END"]
    kind = "end_turn" if expected == answer else "stop_sequence"
    assert state.get_meta_info("x")["finish_reason"] == {"type": kind}
    state += sgl.user("b") + sgl.assistant(sgl.gen("y", stop="\n"))
    assert state["y"] == "next"
    assert "stop_sequences" not in server.bodies[1]


def test_sampling_options_belong_to_an_older_version(api: Make):
    backend, server = api("one", "two")
    ask.run(backend=backend, temperature=1).sync()
    assert ask.run(backend=backend, temperature=0.5, top_p=0.9, top_k=3)["x"] == "two"
    assert {"temperature", "top_p", "top_k"}.isdisjoint(server.bodies[0])
    assert server.headers[0]["anthropic-version"] != "2023-06-01"
    assert [server.bodies[1][name] for name in ("temperature", "top_p", "top_k")] == [0.5, 0.9, 3]
    assert server.headers[1]["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("schema", ['{"type": "object"}', {"type": "object"}])
def test_a_schema(api: Make, schema: Any):
    backend, server = api("{}")
    assert ask.run(backend=backend, json_schema=schema)["x"] == "{}"
    assert server.bodies[0]["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
def test_types(api: Make, stream: bool):
    backend, _ = api("It is 42, I think.")
    assert ask.run(backend=backend, stream=stream, dtype="int")["x"] == "42"


def test_samples_are_several_requests(api: Make):
    backend, server = api("one", "two", "three")
    state = ask.run(backend=backend, n=3, stream=True)
    assert state["x"] == ["one", "two", "three"]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "options", [{"regex": "a"}, {"ebnf": "root ::= a"}, {"stop_regex": "a"}, {"stop_token_ids": [1]},
                {"return_logprob": True}, {"structural_tag": {"a": 1}}]
)  # fmt: skip
def test_what_the_api_lacks(api: Make, options: dict[str, Any]):
    backend, server = api()
    with pytest.raises(sgl.ProgramError, match=r"variable 'x' .*is not in Anthropic's API"):
        ask.run(backend=backend, **options)["x"]
    assert not server.bodies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", "BadRequestError"),
        (429, "rate_limit_error", "RateLimitError"),
        (500, "api_error", "InternalServerError"),
    ],
)
def test_errors(api: Make, status: int, kind: str, error: str, stream: bool):
    backend, server = api(Refusal(status, kind, "not today"))
    state = ask.run(backend=backend, stream=stream)
    with pytest.raises(sgl.ProgramError, match=rf"variable 'x' .*{error}.*not today") as caught:
        state["x"]
    assert type(caught.value.__cause__).__name__ == error
    assert len(server.bodies) == 1
    with pytest.raises(sgl.ProgramError, match="not today"):
        state.text()


def test_the_client_tries_again(api: Make):
    backend, server = api(
        Refusal(429, "rate_limit_error", "slower"), Refusal(500, "api_error", "oh"), "one", max_retries=2
    )
    assert ask.run(backend=backend)["x"] == "one"
    assert len(server.bodies) == 3


def test_an_error_within_a_stream(api: Make):
    backend, _ = api(Refusal(200, "overloaded_error", "too busy", after="on"))
    state = ask.run(backend=backend, stream=True)
    shown = []
    with pytest.raises(sgl.ProgramError, match="too busy"):
        shown.extend(state.text_iter("x"))
    with pytest.raises(sgl.ProgramError, match=r"variable 'x' .*too busy"):
        state["x"]


def test_a_whole_turn_in_one_request(api: Make):
    @sgl.function(num_api_spec_tokens=64)
    def character(s):
        s += sgl.user("Describe someone.")
        with s.assistant():
            s += "Name: " + sgl.gen("name", stop="\n") + "\nJob: " + sgl.gen("job", stop="\n")

    backend, server = api("Name: Ada\nJob: poet\nAge: 3")
    state = character.run(backend=backend)
    assert (state["name"], state["job"]) == ("Ada", "poet")
    assert server.bodies[0]["max_tokens"] == 128
    assert state.messages()[-1]["content"] == "Name: Ada\nJob: poet"


def test_forks(api: Make):
    @sgl.function
    def program(s):
        s += sgl.user("a") + sgl.assistant(sgl.gen("x"))
        forks = s.fork(3)
        forks += lambda i: sgl.user(f"{i}") + sgl.assistant(sgl.gen("y"))
        forks.join()

    backend, server = api("one", "two", "two", "two")
    state = program.run(backend=backend)
    assert state["y"] == ["two"] * 3
    assert sorted(body["messages"][-1]["content"] for body in server.bodies[1:]) == ["0", "1", "2"]
