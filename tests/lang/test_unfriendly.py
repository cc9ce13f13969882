"""Programs that are left, interrupted, too many or wrong, on a real engine, which always comes to rest."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import sgjax
import sgjax as sgl

LONG = {"max_tokens": 300, "ignore_eos": True}
ENDLESS = {"max_tokens": 480, "ignore_eos": True}


@sgl.function
def write(s, word="Hi", **options):
    s += f"All begin alike. {word} " + sgl.gen("x", **options)


def assert_aborted(engine: sgjax.Engine, num_before: int) -> None:
    """Everything at work is aborted: more than before."""
    deadline = time.monotonic() + 10
    while (stats := engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stats.counters.num_aborted > num_before


def interrupted(after_s: float, action: Callable[[], Any]) -> None:
    """Ctrl-C comes during the action, or during the wait behind it; also where it is ignored, as under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(after_s, _thread.interrupt_main).start()
        action()
        time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def comes_to_rest(engine: sgjax.Engine):
    yield
    deadline = time.monotonic() + 30
    while (stats := engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.check()


def test_a_batch_of_hundreds(engine: sgjax.Engine):
    batch = [{"word": str(i), "max_tokens": 2} for i in range(300)]
    states = write.run_batch(batch, backend=engine, num_threads=64, ignore_eos=True)
    assert [state.text().split()[3] for state in states] == [item["word"] for item in batch]
    assert {state.get_meta_info("x")["completion_tokens"] for state in states} == {2}


def test_hundreds_of_branches(engine: sgjax.Engine):
    @sgl.function
    def program(s):
        s += "The quick brown fox "
        forks = s.fork(200)
        forks += lambda i: f"{i}" + sgl.gen("x", max_tokens=2, ignore_eos=True)
        forks.join()
        return len(s["x"])

    assert program.run(backend=engine).ret_value == 200


def test_a_batch_that_is_left(engine: sgjax.Engine):
    num_aborted = engine.stats().counters.num_aborted
    batch = [{"word": str(i), **(ENDLESS if i else LONG)} for i in range(60)]
    states = write.run_batch(batch, backend=engine, num_threads=4, generator_style=True)
    assert next(states)["x"]
    states.close()
    assert_aborted(engine, num_aborted)
    write.run_batch(batch, backend=engine, generator_style=True)  # never begun


def test_an_interrupted_batch(engine: sgjax.Engine):
    batch = [{"word": str(i), **LONG} for i in range(200)]
    with pytest.raises(KeyboardInterrupt):
        interrupted(0.2, lambda: write.run_batch(batch, backend=engine, num_threads=4))


def test_an_interrupted_read(engine: sgjax.Engine):
    """The generation goes on, and can be read afterwards."""
    state = write.run(backend=engine, **LONG)
    with pytest.raises(KeyboardInterrupt):
        interrupted(0.05, lambda: state["x"])
    assert state.get_meta_info("x")["completion_tokens"] == 300


async def test_a_cancelled_reader(engine: sgjax.Engine):
    """It was the only one, so what it read is aborted."""
    num_aborted = engine.stats().counters.num_aborted
    state = write.run(backend=engine, stream=True, **ENDLESS)
    shown = asyncio.Event()

    async def read() -> None:
        async for _ in state.text_async_iter("x"):
            shown.set()

    reading = asyncio.create_task(read())
    await shown.wait()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    with pytest.raises(sgl.ProgramCancelled):
        await asyncio.to_thread(lambda: state["x"])
    assert_aborted(engine, num_aborted)


@pytest.mark.parametrize("n", [1, 2])
def test_a_cancelled_state(engine: sgjax.Engine, n: int):
    num_aborted = engine.stats().counters.num_aborted
    state = write.run(backend=engine, n=n, **ENDLESS)
    while not engine.stats().num_running:
        time.sleep(0.01)
    state.cancel()
    with pytest.raises(sgl.ProgramCancelled):
        state["x"]
    assert_aborted(engine, num_aborted)


def test_an_interrupted_run(engine: sgjax.Engine):
    num_aborted = engine.stats().counters.num_aborted

    @sgl.function
    def waits(s):
        forks = s.fork(2)
        forks += "Hi " + sgl.gen("x", **ENDLESS)
        while not engine.stats().num_running:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waits.run(backend=engine)
    assert_aborted(engine, num_aborted)


def test_pieces_are_whole_characters(engine: sgjax.Engine):
    family, robot = "👩‍👩‍👧‍👦", "🤖é"
    state = write.run(backend=engine, stream=True, regex=f"({family}|{robot}){{4}}", max_tokens=100)
    pieces = list(state.text_iter("x"))
    assert "".join(pieces) == state["x"]
    assert not set("".join(pieces)) - set(family + robot)
    assert len(pieces) > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 2},
        {"max_tokens": -1},
        {"max_tokens": 10**6},
        {"n": 0},
        {"stop": ""},
        {"stop_regex": "("},
        {"regex": "(?=a)"},
        {"json_schema": "{"},
        {"ebnf": "!"},
        {"seed": "a"},
        {"regex": "a", "ebnf": 'root ::= "a"'},
        {"dtype": int, "regex": "1"},
    ],
    ids=repr,
)
def test_a_wrong_option_is_told_with_its_variable(engine: sgjax.Engine, wrong: dict[str, Any], stream: bool):
    state = write.run(backend=engine, stream=stream, **wrong)
    name = next(iter(wrong)).replace("max_tokens", "max_new_tokens")
    with pytest.raises(sgl.ProgramError, match=rf"variable 'x' .*(?s:{name}|combined)"):
        state["x"]
    assert isinstance(state.error(), ValueError)


def test_closing_the_engine_ends_its_programs(tiny_settings: dict):
    engine = sgjax.Engine(**{**tiny_settings, "max_total_tokens": 1024})
    states = [write.run(str(i), backend=engine, stream=i % 2 == 0, **LONG) for i in range(12)]
    while not engine.stats().num_running:
        time.sleep(0.01)
    engine.close()
    for state in (*states, write.run(backend=engine)):
        with pytest.raises(sgl.ProgramError, match="the engine is closed"):
            state["x"]
