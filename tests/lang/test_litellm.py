"""Many APIs through litellm.

The package is not among what the tests install: it unpacks to some 200 MB, brings AWS's client and aiohttp, and asks
for newer versions than constraints.txt has. So a stand-in takes its place. Where it is installed all the same, the
tests "of the real package" run too, against a local server of OpenAI's form: so they did with 1.83.0 and 1.110.2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sgjax as sgl

from .api_servers import OpenAIServer, Refusal, serving

# Of litellm's own types, and of how it copies them.
quiet = pytest.mark.filterwarnings(
    "ignore:Items? .* on TypedDict class .*ReadOnly:UserWarning",
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance:DeprecationWarning",
)


@sgl.function
def ask(s, **options):
    s += sgl.user("a") + sgl.assistant(sgl.gen("x", **options))


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
    state = ask.run(backend=backend, stream=stream, top_k=2)
    assert state["x"] == "one"
    assert state.usage().completion_tokens == 2
    (request,) = requests
    assert (request["model"], request["api_key"], request["top_k"]) == ("anthropic/claude", "key", 2)
    assert "base_url" not in request


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a backend of the real package, for a server that gives these answers."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks the network
    litellm = pytest.importorskip("litellm")
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    servers = []

    def make(*answers: str | Refusal) -> tuple[sgl.LiteLLM, OpenAIServer]:
        context = serving(OpenAIServer(answers))
        servers.append(context)
        server = context.__enter__()
        return sgl.LiteLLM("openai/some-model", base_url=f"{server.url}/v1", api_key="key", num_retries=0), server

    yield make
    for context in servers:
        context.__exit__(None, None, None)


@quiet
@pytest.mark.parametrize("stream", [False, True])
def test_turns_by_the_real_package(real: Any, stream: bool):
    @sgl.function
    def program(s):
        s += sgl.system("Brief.") + sgl.user(sgl.image("https://host/cat.png") + "a")
        s += sgl.assistant(sgl.gen("x", max_tokens=5, stop=["END"], top_p=0.5))
        s += sgl.user("b") + sgl.assistant(sgl.gen("y"))

    backend, server = real("one END", "Grüße")
    state = program.run(backend=backend, stream=stream, temperature=0.25)
    assert (state["x"], state["y"]) == ("one ", "Grüße")
    first, second = server.bodies
    assert first["model"] == "some-model"
    assert first["messages"][0] == {"role": "system", "content": "Brief."}
    assert first["messages"][1]["content"][1] == {"type": "text", "text": "a"}
    assert (first["max_tokens"], first["stop"], first["top_p"], first["temperature"]) == (5, ["END"], 0.5, 0.25)
    assert second["messages"][2:] == [{"role": "assistant", "content": "one "}, {"role": "user", "content": "b"}]
    assert state.usage().prompt_tokens == 14
    assert state.get_meta_info("y")["finish_reason"] == {"type": "stop"}


@quiet
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error"), [(400, "BadRequestError"), (429, "RateLimitError"), (500, "InternalServerError")]
)
def test_errors_of_the_real_package(real: Any, status: int, error: str, stream: bool):
    backend, server = real(Refusal(status, "kind", "not today"))
    with pytest.raises(sgl.ProgramError, match=rf"variable 'x' .*{error}.*not today"):
        ask.run(backend=backend, stream=stream)["x"]
    assert len(server.bodies) == 1


@quiet
def test_options_of_the_real_package(real: Any):
    backend, server = real("{}", "it is 4", "1", "2")
    assert ask.run(backend=backend, json_schema='{"type": "object"}', seed=3)["x"] == "{}"
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert ask.run(backend=backend, dtype=int, stream=True, top_k=4, regex="[0-9]")["x"] == "4"
    assert (server.bodies[1]["top_k"], server.bodies[1]["regex"]) == (4, "[0-9]")
    assert ask.run(backend=backend, n=2)["x"] == ["1", "2"]
