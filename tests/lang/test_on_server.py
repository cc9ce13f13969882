"""Programs run whole on the server do what they do step by step: same text, variables, messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sgjax
import sgjax as sgl
from benchmarks.program_on_server import run_once
from sgjax.lang.backends.http import EndpointError, JsonClient
from sgjax.lang.program import SglFunction

from ..serving import served

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def shared_engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    """One of this module's own, because the server closes it."""
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_engine: sgjax.Engine) -> Iterator[str]:
    with served(shared_engine) as url:
        yield url


class CountingClient(JsonClient):
    """Keeps the paths of its requests."""

    def __init__(self, base_url: str):
        super().__init__(base_url, timeout_s=60)
        self.paths: list[str] = []

    def _open(self, path: str, body: Any, method: str) -> Any:
        self.paths.append(path)
        return super()._open(path, body, method)


class Endpoint(sgl.RuntimeEndpoint):
    """Counts its requests."""

    def __init__(self, base_url: str, **options: Any):
        super().__init__(base_url, **options)
        self._client = CountingClient(base_url)

    @property
    def paths(self) -> list[str]:
        return self._client.paths


@pytest.fixture
def endpoint(url: str, shared_engine: sgjax.Engine) -> Iterator[Endpoint]:
    shared_engine.flush_cache()
    yield Endpoint(url)
    deadline = time.monotonic() + 10
    while (stats := shared_engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline, "a request lives on"
        time.sleep(0.01)
    shared_engine.check()


# --- the same both ways -----------------------------------------------------------------------------------------------


def chat(s, topic):
    s += sgl.system("Be brief.") + sgl.user(f"Tell me about {topic}.")
    with s.assistant():
        s += "It is " + sgl.gen("first", max_tokens=5) + " and " + sgl.gen("second", max_tokens=3, stop="zzz")
    s += sgl.user("Yes or no?") + sgl.assistant(sgl.select("choice", choices=["yes", "no way"]))
    return s["choice"]


def forks(s):
    s += "A list:"
    branches = s.fork(3)
    branches += lambda i: f" {i}. " + sgl.gen("item", max_tokens=4)
    branches.join()
    s += " Best: " + s["item"][1] + sgl.gen("why", max_tokens=4)


def appended_forks(s):
    s += "Two lines:"
    branches = s.fork(2)
    branches += lambda i: f"\n{i}: " + sgl.gen(f"line{i}", max_tokens=3)
    branches.join("concate_and_append")
    s += "\nEnd: " + sgl.gen("end", max_tokens=3)


def nested_forks(s):
    s += "Root."
    outer = s.fork(2)
    for branch in outer:
        branch += " Branch " + sgl.gen("x", max_tokens=2)
        inner = branch.fork(2)
        inner += sgl.gen("y", max_tokens=2)
        inner.join()
    outer.join()


def decisions(s, limit):
    s += "Count: " + sgl.gen("n", max_tokens=2)
    s.when(
        sgl.any_of(s["n"] == "17", sgl.length(s["n"]) > limit),
        lambda s: s.append(" long " + sgl.gen("branch", max_tokens=3)),
        lambda s: s.append(" short"),
    )

    def again(s):
        s += " again " + sgl.gen("word", max_tokens=2)
        pair = s.fork(2)
        pair += sgl.gen("side", max_tokens=1)
        pair.join("concate_and_append")

    s.repeat(3, again, until=lambda s: sgl.contains(s["word"], "q"))
    s.set_var("copy", "<" + s["word"] + ">")
    s += " done " + s["copy"]
    return s.text()


def scopes_and_constraints(s):
    with s.var_scope("scope"):
        s += "Number: " + sgl.gen_int("number", max_tokens=3) + "; code: "
        s += sgl.gen("code", max_tokens=8, regex="[A-C]{2}-[0-9]{2}")
    s += " JSON: " + sgl.gen("json", max_tokens=20, json_schema=SCHEMA)
    s += " samples " + sgl.gen("many", max_tokens=3, n=2)
    s += sgl.separate_reasoning(sgl.gen("thought", max_tokens=4), model_type="qwen3")


def set_twice(s):
    s += "One " + sgl.gen("x", max_tokens=2) + " two " + sgl.gen("x", max_tokens=3)
    s["y"] = "first"
    s["y"] = s["x"]


def python_loop(s, count):
    for i in range(count):
        s += f" {i}:" + sgl.gen(f"v{i}", max_tokens=2)


PROGRAMS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (chat, {"topic": "owls"}),
    (forks, {}),
    (appended_forks, {}),
    (nested_forks, {}),
    (decisions, {"limit": 1}),
    (decisions, {"limit": 1000}),
    (scopes_and_constraints, {}),
    (set_twice, {}),
    (python_loop, {"count": 4}),
]


def outcome(state: sgl.ProgramState) -> dict[str, Any]:
    names = state.interpreter.executor.known_names()
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": {name: state[name] for name in names},
        "tokens": state.usage().completion_tokens,
        "result": state.ret_value,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments"), PROGRAMS, ids=[f"{function.__name__}-{i}" for i, (function, _) in enumerate(PROGRAMS)]
)
def test_same_as_step_by_step(endpoint: Endpoint, function, arguments: dict[str, Any], stream: bool):
    program = SglFunction(function)
    steps = program.run(**arguments, backend=endpoint, **GREEDY)
    expected = outcome(steps)
    assert "/run_program" not in endpoint.paths
    endpoint.paths.clear()
    state = program.run(**arguments, backend=endpoint, on_server=True, stream=stream, **GREEDY)
    if stream:
        state.sync()
    assert outcome(state) == expected
    assert endpoint.paths == ["/run_program"]
    for name in expected["variables"]:
        ours, theirs = state.get_meta_info(name), steps.get_meta_info(name)
        assert (ours is None) == (theirs is None)
        if isinstance(ours, dict) and "finish_reason" in ours:
            for key in ("finish_reason", "completion_tokens", "prompt_tokens"):
                assert ours[key] == theirs[key]


def test_arguments_by_position_and_binding(endpoint: Endpoint):
    program = sgl.function(lambda s, a, b="B", *, c="C": s.append(f"{a}{b}{c}" + sgl.gen("x", max_tokens=2)))
    bound = program.bind(c="c")
    state = bound.run("a", backend=endpoint, on_server=True, **GREEDY)
    assert state.text().startswith("aBc")
    assert endpoint.paths == ["/run_program"]
    assert state.text() == bound.run("a", backend=endpoint, **GREEDY).text()


def test_without_threads(endpoint: Endpoint):
    state = SglFunction(forks).run(backend=endpoint, on_server=True, use_thread=False, **GREEDY)
    assert len(state["item"]) == 3
    assert endpoint.paths == ["/run_program"]


def test_one_request_for_each_run_of_a_batch(endpoint: Endpoint):
    batch = [{"topic": topic} for topic in ("owls", "keys", "rain")]
    program = SglFunction(chat)
    expected = [outcome(state) for state in program.run_batch(batch, backend=endpoint, **GREEDY)]
    endpoint.paths.clear()
    states = program.run_batch(batch, backend=endpoint, on_server=True, **GREEDY)
    assert [outcome(state) for state in states] == expected
    assert endpoint.paths.count("/run_program") == 3
    assert len(endpoint.paths) <= 4  # and one for what all begin with


def test_the_benchmark_counts_round_trips(endpoint: Endpoint):
    run_once(endpoint, 0.0, "owls", False)
    (_, num_steps, expected), (_, num_whole, text) = (run_once(endpoint, 0.0, "owls", way) for way in (False, True))
    # Eight answers, the text that the fork shares, two branches, and a choice: its prefix, then its scores.
    assert (num_steps, num_whole) == (13, 1)
    assert text == expected


# --- streams ----------------------------------------------------------------------------------------------------------


def test_pieces_of_a_stream(endpoint: Endpoint):
    program = SglFunction(chat)
    state = program.run(topic="owls", backend=endpoint, on_server=True, stream=True, **GREEDY)
    pieces = list(state.text_iter("first"))
    assert "".join(pieces) == state["first"]
    whole = list(program.run(topic="owls", backend=endpoint, on_server=True, stream=True, **GREEDY).text_iter())
    assert "".join(whole) == state.text()
    assert len(whole) > 3


async def test_pieces_in_an_event_loop(endpoint: Endpoint):
    state = SglFunction(chat).run(topic="owls", backend=endpoint, on_server=True, stream=True, **GREEDY)
    pieces = [piece async for piece in state.text_async_iter("first")]
    assert "".join(pieces) == state["first"]


def test_going_on_step_by_step(endpoint: Endpoint):
    """What is appended to a state that a server has filled goes on from there, also inside a turn."""

    @sgl.function
    def open_turn(s):
        s += sgl.system("Be brief.") + sgl.user("Hello") + sgl.assistant_begin() + sgl.gen("x", max_tokens=3)

    states = [open_turn.run(backend=endpoint, on_server=on_server, **GREEDY) for on_server in (False, True)]
    for state in states:
        state += " and " + sgl.gen("y", max_tokens=3) + sgl.assistant_end() + sgl.user("Bye")
    assert outcome(states[0]) == outcome(states[1])


# --- falling back -----------------------------------------------------------------------------------------------------


def needs_values(s):
    s += "Say: " + sgl.gen("x", max_tokens=2)
    s += " again" if len(s["x"]) > 1 else " done"


def returns_a_list(s):
    s += "Say: " + sgl.gen("x", max_tokens=2)
    return [s["x"]]


def too_large(s):
    for i in range(300):
        s.fork(1)[0].set_var("i", i)
    s += "x" + sgl.gen("x", max_tokens=1)


@pytest.mark.parametrize("function", [needs_values, returns_a_list, too_large])
def test_what_cannot_be_sent_is_called(endpoint: Endpoint, function):
    program = SglFunction(function)
    state = program.run(backend=endpoint, on_server=True, **GREEDY)
    assert outcome(state) == outcome(program.run(backend=endpoint, **GREEDY))
    assert "/run_program" not in endpoint.paths


def test_own_template_is_not_sent(url: str, shared_engine: sgjax.Engine):
    endpoint = Endpoint(url, chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    state = SglFunction(chat).run(topic="owls", backend=endpoint, on_server=True, **GREEDY)
    assert state.text().startswith("<system>Be brief.<user>")
    assert "/run_program" not in endpoint.paths


def test_a_fixed_format_is_sent(url: str, shared_engine: sgjax.Engine):
    endpoint = Endpoint(url, chat_template="vicuna_v1.1")
    state = SglFunction(chat).run(topic="owls", backend=endpoint, on_server=True, **GREEDY)
    assert endpoint.paths == ["/run_program"]
    assert outcome(state) == outcome(SglFunction(chat).run(topic="owls", backend=endpoint, **GREEDY))


def test_an_older_server(endpoint: Endpoint):
    del endpoint.model_info["programs"]
    state = SglFunction(forks).run(backend=endpoint, on_server=True, **GREEDY)
    assert len(state["item"]) == 3
    assert "/run_program" not in endpoint.paths


def test_a_server_that_has_lost_the_route(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch):
    stream = endpoint._client.stream
    monkeypatch.setattr(
        endpoint._client, "stream", lambda path, body: stream("/gone" if path == "/run_program" else path, body)
    )
    state = SglFunction(forks).run(backend=endpoint, on_server=True, **GREEDY)
    assert len(state["item"]) == 3
    assert "/gone" in endpoint.paths


def test_an_engine_in_process(endpoint: Endpoint, shared_engine: sgjax.Engine):
    state = SglFunction(forks).run(backend=shared_engine, on_server=True, **GREEDY)
    assert len(state["item"]) == 3


def test_wrong_arguments_are_told_as_always(endpoint: Endpoint):
    with pytest.raises(TypeError, match="topic"):
        SglFunction(chat).run(backend=endpoint, on_server=True)


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_failing_generation(endpoint: Endpoint):
    @sgl.function
    def fails(s):
        s += "Say: " + sgl.gen("good", max_tokens=2)
        s += sgl.gen("bad", max_tokens=4000)

    state = fails.run(backend=endpoint, on_server=True, **GREEDY)
    with pytest.raises(sgl.ProgramError, match=r"program\.ops\[1\]\.expr: variable 'bad': max_new_tokens") as failed:
        state.text()
    assert isinstance(failed.value.__cause__, EndpointError)
    assert isinstance(state["good"], str)
    with pytest.raises(sgl.ProgramError):
        state["bad"]


def test_a_failing_branch(endpoint: Endpoint):
    @sgl.function
    def fails(s):
        s += "Say: "
        branches = s.fork(2)
        branches[0] += sgl.gen("x", max_tokens=100)
        branches[1] += "a " + sgl.gen("x", max_tokens=4000)
        branches.join()
        return s["x"]

    with pytest.raises(sgl.ProgramError, match=r"program\.ops\[3\]\.expr\[1\]: variable 'x'"):
        fails.run(backend=endpoint, on_server=True, **GREEDY)
