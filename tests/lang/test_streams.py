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


def gated() -> tuple[FakeBackend, sgl.ProgramState]:
    backend = FakeBackend(["one", "two"])
    backend.gate.clear()
    return backend, two.run(backend=backend, stream=True)


async def test_leaving_the_last_stream_cancels():
    backend, state = gated()
    stream = state.text_async_iter()
    assert await anext(stream) == "A:"
    await stream.aclose()
    backend.gate.set()
    with pytest.raises(sgl.ProgramCancelled, match="'b' cannot be read, because the program was cancelled"):
        state["b"]
    assert len(backend.asked) <= 1  # the first, if it had begun


async def test_cancelling_the_reading_task_cancels():
    backend, state = gated()

    async def read() -> None:
        async for _ in state.text_async_iter("b"):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    backend.gate.set()
    assert isinstance(state.error(), sgl.ProgramCancelled)


def test_leaving_one_of_several_streams():
    backend, state = gated()
    first, second = state.text_iter(), state.text_iter()
    assert next(first) == next(second) == "A:"
    first.close()  # type: ignore[attr-defined]
    backend.gate.set()
    assert "".join(second) == "one B:two"


def test_leaving_what_has_come_to_its_end():
    state = two.run(backend=FakeBackend(["one", "two"]))
    state.sync()
    for _ in state.text_iter():
        break
    state.cancel()
    assert state.text() == "A:one B:two"


def test_forks_are_cancelled_with_their_parent():
    backend = FakeBackend()
    backend.gate.clear()
    state = sgl.function(lambda s: s.append("a")).run(backend=backend)
    forks = state.fork(2)
    forks += sgl.gen("x")
    forks.join()
    forks[0].cancel()
    assert forks[1].interpreter.executor.error is None
    state.cancel()
    backend.gate.set()
    for one in (*forks, state):
        with pytest.raises(sgl.ProgramCancelled):
            one["x"]
