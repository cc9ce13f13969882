"""Text as it grows."""

from __future__ import annotations

import asyncio

import pytest

import sgjax as sgl

from .fakes import FakeBackend


@sgl.function
def two(s):
    s += "A:" + sgl.gen("a") + " B:" + sgl.gen("b")


def test_the_whole_text():
    backend = FakeBackend(["one", "two"])
    backend.gate.clear()
    pieces = two.run(backend=backend, stream=True).text_iter()
    first = next(pieces)
    assert first == "A:"
    backend.gate.set()
    assert first + "".join(pieces) == "A:one B:two"


def test_without_streaming_it_comes_in_steps():
    assert "".join(two.run(backend=FakeBackend(["one", "two"])).text_iter()) == "A:one B:two"


def test_a_variable_before_the_program_has_come_to_it():
    backend = FakeBackend(["one", "two"])
    backend.gate.clear()
    state = two.run(backend=backend, stream=True)
    pieces = state.text_iter("b")
    backend.gate.set()
    assert "".join(pieces) == "two"
    assert state["a"] == "one"
    with pytest.raises(KeyError):
        list(state.text_iter("c"))


def test_reading_waits_for_a_streaming_program():
    backend = FakeBackend(["one", "two"])

    @sgl.function
    def slow(s):
        assert backend.gate.wait(10)
        s += "text"
        s["x"] = 1

    backend.gate.clear()
    state = slow.run(backend=backend, stream=True)
    backend.gate.set()
    assert state["x"] == 1
    assert state.text() == "text"


async def test_in_an_event_loop():
    state = two.run(backend=FakeBackend(["one", "two"]), stream=True)
    assert "".join([piece async for piece in state.text_async_iter()]) == "A:one B:two"
    pieces = [piece async for piece in state.text_async_iter("a", return_meta_data=True)]
    assert "".join(text for text, _ in pieces) == "one"
    assert pieces[-1][1]["completion_tokens"] == 3


async def test_an_event_loop_is_not_blocked():
    backend = FakeBackend(["one", "two"])
    backend.gate.clear()
    state = two.run(backend=backend, stream=True)

    async def collect() -> str:
        return "".join([piece async for piece in state.text_async_iter("b")])

    collecting = asyncio.create_task(collect())
    await asyncio.sleep(0)
    backend.gate.set()
    assert await collecting == "two"


async def test_a_stream_can_be_left():
    state = two.run(backend=FakeBackend(["one", "two"]), stream=True)
    stream = state.text_async_iter()
    async for _ in stream:
        break
    await stream.aclose()
    assert state["b"] == "two"
