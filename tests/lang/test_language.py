"""What programs mean, against a scripted backend. Several are SGLang's public examples in this project's words."""

from __future__ import annotations

import threading

import pytest

import sgjax as sgl
from sgjax.lang import ProgramState
from sgjax.lang.ir import Sampling

from .fakes import FakeBackend


def started(backend: FakeBackend, **options) -> ProgramState:
    """An empty program's state, to be driven by a test."""
    return sgl.function(lambda s: None).run(backend=backend, **options)


def test_text_and_generations_come_in_order():
    backend = FakeBackend(["Paris", "Rome"])
    s = started(backend)
    s += "France: " + sgl.gen("france", max_tokens=4) + "\nItaly: "
    s += sgl.gen("italy")
    assert (s["france"], s["italy"]) == ("Paris", "Rome")
    assert s.text() == "France: Paris\nItaly: Rome"
    assert [asked.text for asked in backend.asked] == ["France: ", "France: Paris\nItaly: "]
    assert [asked.sampling.max_new_tokens for asked in backend.asked if asked.sampling] == [4, 128]


def test_multi_turn_question():
    @sgl.function
    def ask_twice(s, first, second):
        s += sgl.system("You are helpful.")
        s += sgl.user(first)
        s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
        with s.user():
            s += second
        s.assistant(sgl.gen("answer_2"))
        return "done"

    backend = FakeBackend(["One.", "Two."])
    state = ask_twice.run(first="1?", second="2?", backend=backend, temperature=0.5)
    assert state.ret_value == "done"
    assert state.messages() == [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "Two."},
    ]
    assert state.text().endswith("<|im_start|>assistant\nTwo.<|im_end|>\n")
    assert backend.asked[0].text.endswith("1?<|im_end|>\n<|im_start|>assistant\n")
    assert {asked.sampling.temperature for asked in backend.asked if asked.sampling} == {0.5}


def test_turns_by_begin_and_end():
    s = started(FakeBackend(["hi"]))
    s += sgl.user_begin() + "hello" + sgl.user_end()
    s += sgl.assistant_begin()
    s += sgl.gen("x")
    s += sgl.assistant_end()
    assert [message["role"] for message in s.messages()] == ["user", "assistant"]


def test_tips_in_branches_that_run_at_the_same_time():
    both_ask = threading.Barrier(2, timeout=10)

    def answer(prompt, sampling):
        if "Expand" in prompt.text:
            both_ask.wait()
        return f"<{len(prompt.text)}>"

    @sgl.function
    def tips(s):
        s += "Two tips:\n1. Diet. 2. Exercise.\n"
        forks = s.fork(2)
        forks += lambda i: f"Expand tip {i + 1}:\n"
        forks += sgl.gen("detail", max_tokens=8, stop="\n\n")
        forks.join()
        s += "In short: " + s["detail"][0] + forks[1]["detail"]
        s += sgl.gen("summary")

    backend = FakeBackend(answer)
    state = tips.run(backend=backend)
    assert len(state["detail"]) == 2
    assert state.text().startswith("Two tips:\n1. Diet. 2. Exercise.\nIn short: <")
    assert [asked.text for asked in backend.of_kind("prefill")] == ["Two tips:\n1. Diet. 2. Exercise.\n"]


def test_tree_of_thought():
    def branch(s, name, count):
        forks = s.fork(count)
        forks += sgl.user(name) + sgl.assistant(sgl.gen(name))
        return forks

    @sgl.function
    def solve(s, question, count):
        s += sgl.system("Think.") + sgl.user(question)
        s += sgl.assistant("Yes.")
        plans = branch(s, "plan", count)
        solutions = [fork for plan in plans for fork in branch(plan, "solution", count)]
        return [fork["plan"] + fork["solution"] for fork in solutions]

    backend = FakeBackend(lambda prompt, sampling: str(prompt.text.count("assistant")))
    states = solve.run_batch([("a?", 2), {"question": "b?", "count": 2}], backend=backend)
    assert [state.ret_value for state in states] == [["23"] * 4] * 2


def test_one_branch_may_wait_for_its_parent():
    """Forking does not wait for what the parent is generating."""
    backend = FakeBackend(["first", "second"])
    backend.gate.clear()
    s = started(backend)
    s += sgl.gen("a")
    forks = s.fork(1)
    forks[0] += "|" + sgl.gen("b")
    assert "a" in forks[0]
    backend.gate.set()
    assert (forks[0]["a"], forks[0]["b"], forks[0].text()) == ("first", "second", "first|second")


def test_several_samples_are_a_list_and_not_appended():
    s = started(FakeBackend(["a", "b", "c"]))
    s += "x" + sgl.gen("samples", n=3)
    assert s["samples"] == ["a", "b", "c"]
    assert s.text() == "x"
    assert len(s.get_meta_info("samples")) == 3


def test_select_appends_the_best_choice():
    scores = {"yes": [-1.0, -3.0], "no": [-0.5], "maybe": [-0.5, -0.4]}
    s = started(FakeBackend(scores=scores))
    s += "Well, " + sgl.select("word", choices=list(scores))
    assert s["word"] == "maybe"
    assert s.text() == "Well, maybe"
    assert s.get_meta_info("word")["normalized_prompt_logprobs"] == [-2.0, -0.5, -0.45]
    s += sgl.gen("again", choices=["yes", "no"], choices_method=sgl.greedy_token_selection)
    assert s["again"] == "no"


def test_select_draws_nothing():
    s = started(FakeBackend(scores={"a": [-1.0]}))
    s += sgl.gen("x", choices=["a"], temperature=0.7)
    assert "temperature" in str(s.error())


def test_a_scope_collects_what_is_appended():
    s = started(FakeBackend(["42"]))
    s += "Q. "
    with s.var_scope("all"):
        s += "The answer: " + sgl.gen("number")
    s += " End."
    assert s["all"] == "The answer: 42"


def test_copy_is_a_fork_of_one():
    s = started(FakeBackend(["x"]))
    s += "start "
    with s.copy() as other:
        other += sgl.gen("word")
    assert s["word"] == ["x"]
    assert s.text() == "start "
    assert other.text() == "start x"


def test_concatenated_branches():
    backend = FakeBackend(lambda prompt, sampling: prompt.text[-2])
    s = started(backend)
    s += sgl.user("Letters.") + sgl.assistant_begin() + "Here:"
    forks = s.fork(3)
    forks += [f" {letter}=" + sgl.gen("letter") for letter in "abc"]
    forks.join("concate_and_append")
    s += sgl.assistant_end()
    assert s.messages()[-1]["content"] == "Here: a=a b=b c=c"
    assert s.text().endswith("assistant\nHere: a=a b=b c=c<|im_end|>\n")


def test_concatenated_turns():
    s = started(FakeBackend(["A", "B"]), use_thread=False)
    s += sgl.user("Start")
    forks = s.fork(2)
    forks += sgl.assistant(sgl.gen("x")) + sgl.user("more")
    forks.join("concate_and_append")
    assert [message["content"] for message in s.messages()] == ["Start", "A", "more", "B", "more"]


def test_a_fork_cannot_be_concatenated_from_another_turn():
    s = started(FakeBackend())
    s += sgl.user_begin()
    forks = s.fork(2)
    forks += sgl.user_end()
    forks.join("concate_and_append")
    assert "must end in the turn" in str(s.error())


def test_reasoning_is_kept_apart():
    s = started(FakeBackend(["<think>\nhm\n</think>\n\nfour"]))
    s += "2+2? " + sgl.separate_reasoning(sgl.gen("answer"), model_type="qwen3") + "!"
    assert (s["answer"], s["answer_reasoning_content"]) == ("four", "hm")
    assert s.text() == "2+2? four!"


def test_variables_can_be_set():
    s = started(FakeBackend())
    s.set_var("a", 1)
    s["b"] = [2]
    assert (s.get_var("a"), s["b"], "a" in s, "c" in s) == (1, [2], True, False)
    assert s.get_meta_info("a") is None


def test_pictures_go_into_messages():
    s = started(FakeBackend())
    s += sgl.user(sgl.image(b"\xff\xd8picture") + "What is it?")
    (message,) = s.messages()
    picture, text = message["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text == {"type": "text", "text": "What is it?"}


def test_usage_counts_forks():
    s = started(FakeBackend(["abc"]))
    s += "12345" + sgl.gen("x")
    forks = s.fork(2)
    forks += sgl.gen("y")
    forks.join()
    s.sync()
    usage = s.usage()
    assert usage.num_requests == 4  # a generation, the shared prefix, two generations
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5 + 3 * 8, 9, 4)
    assert forks[0].usage().num_requests == 1
    assert usage.hit_rate == 4 / 29


def test_a_program_can_call_another():
    @sgl.function
    def part(s, word):
        s += word
        return len(word)

    @sgl.function
    def whole(s):
        return part(s, "abc")

    state = whole(backend=FakeBackend())
    assert (state.text(), state.ret_value) == ("abc", 3)


def test_bound_arguments():
    @sgl.function
    def program(s, a, b="B"):
        s += a + b

    assert program.bind(a="A").run(backend=FakeBackend()).text() == "AB"
    assert program.bind(a="A").run(b="C", backend=FakeBackend()).text() == "AC"


def test_the_default_backend():
    program = sgl.function(lambda s: s.append(sgl.gen("x")))
    with pytest.raises(ValueError, match="no backend"):
        program.run()
    backend = FakeBackend(["default"])
    sgl.set_default_backend(backend)
    try:
        assert program.run()["x"] == "default"
        sgl.flush_cache()
        assert backend.num_flushes == 1
        assert sgl.get_server_info() == {"version": "fake"}
    finally:
        sgl.set_default_backend(None)
    with pytest.raises(TypeError, match="no backend"):
        sgl.set_default_backend("a string")


@pytest.mark.parametrize("use_thread", [True, False])
def test_constraints_reach_the_backend(use_thread: bool):
    backend = FakeBackend(["7"])
    s = started(backend, use_thread=use_thread, stop=["\n"], top_k=5)
    s += sgl.gen_int("a") + sgl.gen_string("b") + sgl.gen("c", regex="[a-z]+", stop="x", seed=3)
    s += sgl.gen("d", json_schema={"type": "object"}, repetition_penalty=1.1)
    s.sync()
    a, b, c, d = [asked.sampling or Sampling() for asked in backend.asked]
    assert (a.dtype, b.dtype, c.regex, c.stop, c.seed, c.top_k) == ("int", "str", "[a-z]+", "x", 3, 5)
    assert (d.json_schema, d.repetition_penalty, d.stop) == ({"type": "object"}, 1.1, ("\n",))


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="cannot be combined with regex"):
        sgl.gen("x", choices=["a"], regex="a")
    with pytest.raises(ValueError, match="dtype"):
        sgl.gen("x", dtype=dict)
    with pytest.raises(ValueError, match="at least one"):
        sgl.select("x", choices=[])
    with pytest.raises(ValueError, match="empty"):
        sgl.select("x", choices=["a", ""])
    with pytest.raises(TypeError, match="choices: give a list of strings, not 'abc'"):
        sgl.gen("x", choices="abc")
    with pytest.raises(TypeError, match=r"name: \['a', 'b'\] is not a string; the choices come second"):
        sgl.select(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choices_method"):
        sgl.select("x", choices=["a"], choices_method="best")
    with pytest.raises(ValueError, match="markup"):
        sgl.separate_reasoning(sgl.gen("x"), model_type="gpt-1")
    with pytest.raises(TypeError, match="cannot append"):
        sgl.gen("x") + 5  # type: ignore[operator]
    s = started(FakeBackend())
    with pytest.raises(ValueError, match="None"):
        s += None
