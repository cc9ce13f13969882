"""Programs on a real engine: what they compute, counted in tokens, and what they say."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import sgjax
import sgjax as sgl
from sgjax.lang.backends.engine import EngineBackend
from sgjax.lang.choices import METHODS

PARAGRAPH = "The quick brown fox jumps over the lazy dog while a patient owl looks on from a tall old tree. "
PARENT = PARAGRAPH * 5


class CountingBackend(EngineBackend):
    """Keeps the meta information of every request."""

    def __init__(self, engine: sgjax.Engine):
        super().__init__(engine)
        self.metas: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def _keep(self, kind: str, meta: dict[str, Any]) -> None:
        with self._lock:
            self.metas.append((kind, meta))

    def generate(self, prompt, sampling):
        completions = super().generate(prompt, sampling)
        self._keep("generate", completions[0].meta_info)
        return completions

    def prefill(self, prompt):
        meta = super().prefill(prompt)
        self._keep("prefill", meta)
        return meta

    def select(self, prompt, choices, method):
        decision = super().select(prompt, choices, method)
        self._keep("select", decision.meta_info)
        return decision

    def computed(self, kind: str | None = None) -> int:
        return sum(meta["computed_tokens"] for k, meta in self.metas if kind in (None, k))


@pytest.fixture
def backend(engine: sgjax.Engine) -> CountingBackend:
    return CountingBackend(engine)


def num_tokens(engine: sgjax.Engine, text: str) -> int:
    return len(engine.tokenizer.encode(text))


def page_size(engine: sgjax.Engine) -> int:
    assert engine.config.page_size is not None
    return engine.config.page_size


@pytest.mark.parametrize("num_forks", [2, 5])
def test_forks_compute_their_parent_once(engine: sgjax.Engine, backend: CountingBackend, num_forks: int):
    @sgl.function
    def program(s):
        s += PARENT
        forks = s.fork(num_forks)
        forks += lambda i: f"Number {i}: " + sgl.gen("x", max_tokens=3, temperature=0, ignore_eos=True)
        forks.join()
        return forks[-1]

    state = program.run(backend=backend)
    assert len(state["x"]) == num_forks
    parent = num_tokens(engine, PARENT)
    own = num_tokens(engine, PARENT + "Number 0: ") - parent + 3
    assert backend.computed("prefill") == parent
    assert backend.computed() <= parent + num_forks * (own + page_size(engine) - 1)
    assert all(meta["cached_tokens"] > parent - page_size(engine) for k, meta in backend.metas if k == "generate")
    usage = state.usage()
    assert usage.num_requests == num_forks + 1
    assert usage.cached_tokens == sum(meta["cached_tokens"] for _, meta in backend.metas)


def test_forks_of_what_was_generated_compute_it_once(engine: sgjax.Engine, backend: CountingBackend):
    """Tokens of generated text, read again as text, may differ from those that were generated."""

    @sgl.function
    def program(s):
        s += PARENT + sgl.gen("long", max_tokens=60, temperature=0, ignore_eos=True)
        forks = s.fork(4)
        forks += lambda i: f" {i}" + sgl.gen("x", max_tokens=1)
        forks.join()

    state = program.run(backend=backend)
    assert len(state["x"]) == 4
    parent = num_tokens(engine, PARENT + state["long"])
    before = num_tokens(engine, PARENT) + 60
    again = backend.computed("prefill")
    assert again <= 60 + page_size(engine)
    assert backend.computed() <= before + again + 4 * (4 + page_size(engine))
    assert parent > 60


def test_choices_are_scored_over_a_shared_prefix(engine: sgjax.Engine, backend: CountingBackend):
    choices = [" yes", " no", " perhaps not"]
    state = sgl.function(lambda s: s.append(PARENT + sgl.select("x", choices))).run(backend=backend)
    assert state["x"] in choices
    assert state.text() == PARENT + state["x"]
    own = sum(num_tokens(engine, choice) for choice in choices)
    parent = num_tokens(engine, PARENT)
    assert backend.computed() <= parent + own + len(choices) * page_size(engine)
    (_, meta) = backend.metas[0]
    assert meta["prompt_tokens"] >= 3 * parent
    assert [len(tokens) for tokens in meta["input_token_logprobs"]] == [num_tokens(engine, c) for c in choices]


@pytest.mark.parametrize("text", ["The answer is", "The answer is ", "The answer is 1"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_whole_text(engine: sgjax.Engine, text: str, method: str):
    choices = [" yes", "yes indeed", "2"]
    state = sgl.function(lambda s: s.append(text + sgl.select("x", choices, 0.0, method))).run(backend=engine)
    meta = state.get_meta_info("x")
    prefix = engine.tokenizer.encode(text)
    for choice, tokens in zip(choices, meta["input_token_logprobs"], strict=True):
        ids = engine.tokenizer.encode(text + choice)
        start = next(i for i in range(len(ids)) if i >= len(prefix) or ids[i] != prefix[i])
        whole = engine.generate(
            input_ids=ids, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
        )
        assert [token for _, token, _ in tokens] == ids[start:]
        expected = [one.logprob for one in whole.input_logprobs[start:]]
        np.testing.assert_allclose([logprob for logprob, _, _ in tokens], expected, rtol=2e-4, atol=2e-4)
        assert "".join(token_text for _, _, token_text in tokens).endswith(choice)
    if method == "token_length_normalized":
        assert state["x"] == choices[int(np.argmax(meta["normalized_prompt_logprobs"]))]
    if method == "unconditional_likelihood_normalized":
        assert [len(tokens) for tokens in meta["unconditional_token_logprobs"]] == [
            len(tokens) for tokens in meta["input_token_logprobs"]
        ]


def test_joined_text_is_computed_once(engine: sgjax.Engine, backend: CountingBackend):
    @sgl.function
    def program(s):
        s += PARENT
        forks = s.fork(3)
        forks += lambda i: f"Part {i}: " + PARAGRAPH + sgl.gen("x", max_tokens=2, ignore_eos=True)
        forks.join("concate_and_append")
        s += "The end" + sgl.gen("end", max_tokens=1)

    state = program.run(backend=backend)
    end = state.get_meta_info("end")
    assert state.text().startswith(PARENT + "Part 0: ")
    assert state.text().index("Part 1: ") < state.text().index("Part 2: ")
    # The first branch is a prefix of the joined text; the others are computed where they stand now.
    added = end["prompt_tokens"] - num_tokens(engine, PARENT + "Part 0: " + PARAGRAPH)
    assert end["computed_tokens"] <= added + page_size(engine) + 1


def test_a_batch_shares_its_prefix(engine: sgjax.Engine, backend: CountingBackend):
    @sgl.function
    def program(s, question):
        s += PARENT + question + sgl.gen("x", max_tokens=1, ignore_eos=True)

    questions = [f"Is it {word}?" for word in ("red", "blue", "green", "red")]
    states = program.run_batch([(question,) for question in questions], backend=backend)
    assert all(len(state["x"]) >= 0 for state in states)
    parent = num_tokens(engine, PARENT)
    assert backend.computed("prefill") == parent
    assert backend.computed() <= parent + 4 * (6 + page_size(engine))


def test_cached_programs_start_with_a_hit(engine: sgjax.Engine, backend: CountingBackend):
    @sgl.function
    def program(s, question):
        s += PARENT + question + sgl.gen("x", max_tokens=1)

    assert program.cache(backend) == PARENT
    state = program.run(question="Is it?", backend=backend)
    assert state.get_meta_info("x")["cached_tokens"] > num_tokens(engine, PARENT) - page_size(engine)


def test_chat_turns_are_the_templates(engine: sgjax.Engine):
    @sgl.function
    def chat(s):
        s += sgl.system("Be brief.")
        for i in range(3):
            s += sgl.user(f"Question {i}?") + sgl.assistant(sgl.gen(f"a{i}", max_tokens=5, ignore_eos=True))

    state = chat.run(backend=engine, temperature=0)
    messages = state.messages()
    assert state.text() == engine.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    direct = engine.generate(messages=messages[:2], sampling_params={"max_new_tokens": 5, "ignore_eos": True,
                                                                    "temperature": 0})  # fmt: skip
    assert direct.text == state["a0"]
    assert state.get_meta_info("a0")["prompt_tokens"] == len(direct.prompt_ids)
    assert state.get_meta_info("a0")["finish_reason"] == {"type": "length", "length": 5}


def test_streams_and_samples(engine: sgjax.Engine):
    @sgl.function
    def program(s):
        s += "Once upon" + sgl.gen("one", max_tokens=12, ignore_eos=True)
        s += sgl.gen("three", n=3, max_tokens=2, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True)

    state = program.run(backend=engine, stream=True, temperature=0)
    assert "".join(state.text_iter("one")) == state["one"]
    assert len(state["three"]) == 3
    meta = state.get_meta_info("three")[0]
    (logprob, token, text) = meta["output_token_logprobs"][0]
    assert logprob <= 0
    assert text == engine.tokenizer.decode([token])
    assert len(meta["output_top_logprobs"][0]) == 2


def test_dtype_becomes_a_grammar(engine: sgjax.Engine):
    state = sgl.function(lambda s: s.append("It is " + sgl.gen_int("n", max_tokens=8))).run(backend=engine)
    int(state["n"])


def test_refusals(engine: sgjax.Engine):
    s = sgl.function(lambda s: s.append(sgl.gen("x"))).run(backend=engine)
    with pytest.raises(sgl.ProgramError, match="there is no text yet"):
        s["x"]
    s = sgl.function(lambda s: s.append("a" + sgl.image("x.png") + sgl.gen("x"))).run(backend=engine)
    with pytest.raises(sgl.ProgramError, match="does not serve images or video yet"):
        s["x"]
    s = sgl.function(lambda s: s.append("a" + sgl.gen("x", temperature=-1))).run(backend=engine)
    with pytest.raises(sgl.ProgramError, match="temperature"):
        s["x"]


def test_special_tokens_start_a_text_once():
    """BOS comes from the chat template, from the program, or from the tokenizer."""

    class Tokenizer:
        chat_template = "{{ bos_token }}"
        special_tokens = {"bos_token": "<s>"}  # noqa: RUF012

        def apply_chat_template(self, messages, add_generation_prompt):
            return "<s>" + "".join(message["content"] for message in messages)

        def encode(self, text, add_special_tokens=True):
            return [*([-1] if add_special_tokens else []), *text]

    class Engine:
        tokenizer = Tokenizer()

    backend = EngineBackend(Engine())
    s = sgl.function(lambda s: None).run(backend=backend)
    s += sgl.user("a")
    assert backend._ids(s.interpreter.executor.prompt_seen()) == list("<s>a")
    for text, expected in (("a", [-1, "a"]), ("<s>a", list("<s>a"))):
        s = sgl.function(lambda s, text=text: s.append(text)).run(backend=backend)
        assert backend._ids(s.interpreter.executor.prompt_seen()) == expected


def test_runtime(tiny_settings: dict):
    with sgl.Runtime(**{**tiny_settings, "max_total_tokens": 1024}) as runtime:
        state = sgl.function(lambda s: s.append("a" + sgl.gen("x", max_tokens=2))).run(backend=runtime)
        assert state.get_meta_info("x")["completion_tokens"] <= 2
        assert '"completion_tokens": 2' in runtime.generate("b", {"max_new_tokens": 2, "ignore_eos": True})
        assert runtime.get_server_info()["max_total_tokens"] == 1024
        runtime.cache_prefix(PARENT)
        runtime.flush_cache()
        assert runtime.get_tokenizer() is runtime.engine.tokenizer


def test_importing_the_language_brings_no_jax():
    import subprocess
    import sys

    code = "import sys, sgjax as sgl; sgl.gen('x'); assert not {'jax', 'jinja2', 'openai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
