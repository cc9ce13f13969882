"""One program means the same on all backends, and however it is run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import sgjax as sgl
from sgjax.lang.chat_format import FIXED_FORMATS

from .api_servers import AnthropicServer, OpenAIServer, serving
from .fakes import FakeBackend

ANSWERS = ["one", "two", "two", "s1", "s2", "three."]
Make = Callable[[contextlib.ExitStack], Any]


def fake(stack: contextlib.ExitStack, *, is_chat_model: bool) -> FakeBackend:
    return FakeBackend(ANSWERS, chat_format=FIXED_FORMATS["default"], is_chat_model=is_chat_model)


def openai(stack: contextlib.ExitStack, model: str) -> sgl.OpenAI:
    server = stack.enter_context(serving(OpenAIServer(ANSWERS)))
    backend = sgl.OpenAI(model, base_url=f"{server.url}/v1", api_key="key", max_retries=0)
    stack.callback(backend.client.close)
    return backend


def anthropic(stack: contextlib.ExitStack) -> sgl.Anthropic:
    server = stack.enter_context(serving(AnthropicServer(ANSWERS)))
    backend = sgl.Anthropic("claude-x", base_url=server.url, api_key="key", max_retries=0)
    stack.callback(backend.client.close)
    return backend


def litellm(stack: contextlib.ExitStack) -> sgl.LiteLLM:
    """Through a stand-in that hands on to OpenAI's client, whose form litellm's answers have."""
    module: Any = ModuleType("litellm")
    module.completion = openai(stack, "gpt-4o").client.chat.completions.create
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setitem(sys.modules, "litellm", module)
    return sgl.LiteLLM("gpt-4o")


BACKENDS: dict[str, Make] = {
    "text": lambda stack: fake(stack, is_chat_model=False),
    "chat": lambda stack: fake(stack, is_chat_model=True),
    "openai": lambda stack: openai(stack, "gpt-4o"),
    "openai-completions": lambda stack: openai(stack, "gpt-3.5-turbo-instruct"),
    "anthropic": anthropic,
    "litellm": litellm,
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield BACKENDS[request.param](stack)


@sgl.function
def program(s, question):
    s += sgl.system("Brief.")
    s += sgl.user(question)
    with s.var_scope("turn"):
        s += sgl.assistant(sgl.gen("first", max_tokens=9))
    forks = s.fork(2)
    forks += lambda i: sgl.user(f"{i}?") + sgl.assistant(sgl.gen("branch"))
    forks.join()
    s += sgl.user(forks[1]["branch"])
    with s.copy() as other:
        other += sgl.assistant_begin() + sgl.gen("samples", n=2)
    s.when(sgl.contains(s["first"], "on"), lambda s: s.set_var("seen", True))
    s += sgl.assistant(sgl.gen("last", stop="."))
    return len(s["samples"][0])


@pytest.mark.parametrize(
    "options", [{}, {"stream": True}, {"use_thread": False}], ids=["plain", "stream", "one thread"]
)
def test_the_same_everywhere(backend: Any, options: dict[str, bool]):
    state = program.run(question="Why?", backend=backend, **options)
    last = "three." if isinstance(backend, FakeBackend) else "three"  # which stops at nothing
    assert (state["first"], state["branch"], state["samples"]) == ("one", ["two", "two"], [["s1", "s2"]])
    assert (state["last"], state["seen"], state["turn"]) == (last, True, "ASSISTANT:one\n")
    state.sync()
    assert state.ret_value == 2
    assert state.text() == f"SYSTEM:Brief.\nUSER:Why?\nASSISTANT:one\nUSER:two\nASSISTANT:{last}\n"
    assert [message["content"] for message in state.messages()] == ["Brief.", "Why?", "one", "two", last]
    assert state.usage().completion_tokens > 0
    with pytest.raises(KeyError, match="known are: branch, first, last, samples, seen, turn"):
        state["other"]
