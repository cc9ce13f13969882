"""Constrained output through the whole engine: masks, forced tokens, the grammar queue, refusals."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import textwrap
import threading

import pytest

import sgjax
from sgjax import RequestError, SamplingParams
from sgjax.engine.lowering import all_keys
from sgjax.grammar import GrammarCompiler

PROMPT = list(range(100, 140))
SCHEMA = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer", "minimum": 0, "maximum": 999},
        "favourite_colour": {"enum": ["red", "green", "blue"]},
        "is_registered": {"type": "boolean"},
    },
    "required": ["identifier", "favourite_colour", "is_registered"],
    "additionalProperties": False,
}


def params(**values) -> dict:
    return {"temperature": 0, "max_new_tokens": 70, **values}


def request(rid: str, sampling: SamplingParams) -> sgjax.Request:
    return sgjax.Request(rid=rid, input_ids=tuple(PROMPT), sampling=sampling)


def prompts() -> list[list[int]]:
    return [list(range(1000 * i + 10, 1000 * i + 10 + 7 * i)) for i in range(1, 9)]


GRAMMARS = (
    {"json_schema": SCHEMA},
    {"regex": r"The (quick|lazy) brown (fox|dog) number [0-9]{2}, said [a-z ]{99}"},
    {"choices": ["a first answer that is long", "a first answer", "another answer"]},
    {"ebnf": 'root ::= "<answer>" [a-z]{3} "</answer>"'},
    {},
)


def mixed() -> list[dict]:
    return [params(seed=i, **GRAMMARS[i % len(GRAMMARS)], ignore_eos=i % len(GRAMMARS) == 4) for i in range(8)]


@pytest.fixture(scope="module")
def alone(tiny_settings) -> list[list[int]]:
    """One at a time, every token sampled through its mask, nothing shared, no overlap."""
    settings = {**tiny_settings, "disable_jump_forward": True, "disable_radix_cache": True}
    with sgjax.Engine(**settings, disable_overlap_schedule=True) as engine:
        return [
            engine.generate(input_ids=p, sampling_params=s).output_ids for p, s in zip(prompts(), mixed(), strict=True)
        ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disable_jump_forward": True},
        {"disable_overlap_schedule": True},
        {"chunked_prefill_size": 16},
        {"disable_radix_cache": True, "max_running_requests": 2},
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_output_is_the_same_however_the_work_is_cut_up(settings, make_engine, alone):
    engine = make_engine(**settings)
    outputs = engine.generate(input_ids=prompts(), sampling_params=mixed())
    assert [output.output_ids for output in outputs] == alone
    one_by_one = [engine.generate(input_ids=p, sampling_params=s) for p, s in zip(prompts(), mixed(), strict=True)]
    assert [output.output_ids for output in one_by_one] == alone
    counters = engine.stats().counters
    assert (counters.forced_tokens > 0) == ("disable_jump_forward" not in settings)
    assert counters.generated_tokens == 2 * sum(map(len, alone))
    for output in outputs[::5]:
        assert json.loads(output.text)["favourite_colour"] in SCHEMA["properties"]["favourite_colour"]["enum"]
    assert outputs[1].text.startswith("The ")
    assert outputs[2].text in GRAMMARS[2]["choices"]
    assert re.fullmatch("<answer>[a-z]{3}</answer>", outputs[3].text)


def test_preempted_rows_keep_their_place_in_the_grammar(engine, make_engine):
    sampling = params(regex="(one|two) ([a-z] ){60}three hundred and sixty five", max_new_tokens=90)
    asked = [[i, *PROMPT] for i in range(10, 14)]
    alone = [engine.generate(input_ids=prompt, sampling_params=sampling).output_ids for prompt in asked]
    small = make_engine(max_total_tokens=224, context_length=224)
    small.generate(input_ids=asked[0], sampling_params=sampling)  # the grammar is compiled: now they come together
    outputs = small.generate(input_ids=asked, sampling_params=sampling)
    assert [output.output_ids for output in outputs] == alone
    counters = small.stats().counters
    assert counters.num_preemptions > 0
    assert counters.forced_tokens > 0


def test_forced_tokens_cost_no_steps(engine):
    output = engine.generate(input_ids=PROMPT, sampling_params=params(json_schema=SCHEMA))
    receipt = output.receipt
    assert output.finish == sgjax.types.FinishReason("stop")
    assert receipt.completion_tokens == len(output.output_ids)
    assert receipt.forced_tokens > receipt.completion_tokens / 3
    assert receipt.steps < receipt.completion_tokens - receipt.forced_tokens / 2
    # What is forced is written as the tokenizer writes it, and so is the whole where the model follows the tokenizer.
    assert engine.tokenizer.decode(output.output_ids) == output.text


def test_one_choice_needs_no_decision(engine):
    """All is forced, and the sequence still ends in order, streams included."""
    only = "Exactly this text, whatever the model would say."
    output = engine.generate(input_ids=PROMPT, sampling_params=params(choices=[only]))
    assert (output.text, output.finish.kind) == (only, "stop")
    streamed = list(engine.stream(input_ids=PROMPT, sampling_params=params(choices=[only])))
    assert streamed[-1].text == only
    cut = engine.generate(input_ids=PROMPT, sampling_params=params(choices=[only], max_new_tokens=4))
    assert cut.finish.kind == "length"
    assert only.startswith(cut.text)
    assert len(cut.output_ids) == 4
    assert engine.generate(input_ids=PROMPT, sampling_params=params(choices=[only], max_new_tokens=0)).text == ""


def test_max_tokens_reports_length(engine):
    for max_new_tokens in range(1, 14):
        output = engine.generate(
            input_ids=PROMPT, sampling_params=params(json_schema=SCHEMA, max_new_tokens=max_new_tokens)
        )
        assert (output.finish.kind, len(output.output_ids)) == ("length", max_new_tokens)


def test_log_probabilities_are_those_of_the_free_model(engine):
    """Tokens with log-probabilities are sampled one by one, and measured before the mask."""
    output = engine.generate(input_ids=PROMPT, sampling_params=params(regex="[0-9]{6}"), return_logprob=True)
    assert re.fullmatch("[0-9]{6}", output.text)
    assert output.receipt.forced_tokens == 0
    measured = engine.generate(
        input_ids=[*PROMPT, *output.output_ids],
        sampling_params=params(max_new_tokens=0),
        return_logprob=True,
        logprob_start_len=len(PROMPT),
    )
    chosen = [one.logprob for one in output.output_logprobs]
    assert chosen == pytest.approx([one.logprob for one in measured.input_logprobs], abs=1e-4)


def test_samples_of_one_request_have_matchers_of_their_own(engine):
    sampling = params(temperature=1.0, n=4, seed=3, json_schema=SCHEMA)
    outputs = engine.generate(input_ids=PROMPT, sampling_params=sampling)
    assert len({output.text for output in outputs}) > 1
    for output in outputs:
        assert json.loads(output.text)
        alone = engine.generate(input_ids=PROMPT, sampling_params={**sampling, "n": 1, "seed": 3 + output.index})
        assert alone.text == output.text


def test_penalties_count_forced_tokens(engine):
    sampling = params(frequency_penalty=1.5, json_schema=SCHEMA)
    fast = engine.generate(input_ids=PROMPT, sampling_params=sampling)
    assert fast.receipt.forced_tokens > 0
    slow = engine.generate(input_ids=PROMPT, sampling_params=sampling, return_logprob=True)
    assert fast.output_ids == slow.output_ids


def test_a_stop_string_among_forced_tokens(engine):
    choice = "one two three four five six seven"
    output = engine.generate(input_ids=PROMPT, sampling_params=params(choices=[choice], stop=[" four"]))
    assert (output.text, output.finish.matched) == ("one two three", " four")
    assert engine.tokenizer.decode(output.output_ids) == "one two three four"
    assert output.receipt.completion_tokens == len(output.output_ids)


def test_a_refused_grammar_names_its_field(engine):
    before = engine.stats().counters.num_requests
    for field, value in (("json_schema", {"type": "objct"}), ("regex", "(a"), ("ebnf", "root ::= missing")):
        with pytest.raises(RequestError) as raised:
            engine.generate(input_ids=PROMPT, sampling_params=params(**{field: value}))
        assert raised.value.field == field
    with pytest.raises(RequestError, match="choices: give at least one"):
        SamplingParams(choices=())
    with pytest.raises(RequestError, match="cannot be combined"):
        SamplingParams(regex="a", json_schema="{}")
    with pytest.raises(RequestError, match="min_new_tokens"):
        SamplingParams(regex="a", min_new_tokens=3)
    stats = engine.stats()
    assert (stats.counters.num_requests, stats.num_grammar_queue) == (before, 0)


def test_one_bad_grammar_in_a_batch_stops_the_batch(engine):
    with pytest.raises(RequestError, match="regex"):
        engine.generate(input_ids=[PROMPT] * 2, sampling_params=[params(), params(regex="(")])
    assert engine.generate(input_ids=PROMPT, sampling_params=params(max_new_tokens=2)).text


class HeldCompiler(GrammarCompiler):
    """Holds compiled grammars back until told."""

    def __init__(self, inner: GrammarCompiler):
        self.inner = inner
        self.release = threading.Event()

    def compile(self, spec):
        from concurrent.futures import Future

        future: Future = Future()

        def finish() -> None:
            grammar = self.inner.compile(spec).result()
            self.release.wait(20)
            future.set_result(grammar)

        threading.Thread(target=finish).start()
        return future


@pytest.fixture
def held(engine, monkeypatch):
    compiler = HeldCompiler(engine._grammars)
    monkeypatch.setattr(engine, "_grammars", compiler)
    yield compiler
    compiler.release.set()


def test_compiling_holds_up_nobody(engine, held):
    waiting = engine.submit(request("held", SamplingParams(**params(choices=["yes", "no"]))))
    assert engine.generate(input_ids=PROMPT, sampling_params=params(max_new_tokens=3)).output_ids
    assert engine.stats().num_grammar_queue == 1
    held.release.set()
    assert "".join(delta.text for delta in waiting) in ("yes", "no")
    assert engine.stats().num_grammar_queue == 0


def test_abort_while_compiling(engine, held):
    sampling = SamplingParams(**params(choices=["yes", "no"], n=2))
    waiting = engine.submit(request("held", sampling))
    assert engine.abort("held")
    assert [delta.finish.kind for delta in waiting] == ["abort", "abort"]
    again = engine.submit(request("held", sampling))
    held.release.set()
    assert sum(delta.finish is not None for delta in again) == 2


def test_abort_of_one_sample_while_compiling(engine, held):
    waiting = engine.submit(request("held", SamplingParams(**params(choices=["yes", "no"], n=2))))
    assert engine.abort("held", 1)
    held.release.set()
    assert {delta.index: delta.finish.kind for delta in waiting if delta.finish} == {0: "stop", 1: "abort"}


def test_started_waits_for_the_grammar(engine, held):
    async def run() -> None:
        free = engine.submit(request("free", SamplingParams(max_new_tokens=1)))
        await asyncio.wait_for(free.started(), 20)
        handle = engine.submit(request("held", SamplingParams(**params(regex="a|b"))))
        started = asyncio.create_task(handle.started())
        await asyncio.sleep(0.05)
        assert not started.done()
        held.release.set()
        await asyncio.wait_for(started, 20)
        assert [delta.finish.kind async for delta in handle if delta.finish] == ["stop"]

    asyncio.run(run())


def test_started_raises_a_refusal(engine):
    async def run() -> None:
        handle = engine.submit(request("bad", SamplingParams(**params(regex="("))))
        with pytest.raises(RequestError, match="regex"):
            await asyncio.wait_for(handle.started(), 20)
        with pytest.raises(RequestError, match="regex"):
            async for _ in handle:
                pass

    asyncio.run(run())


def test_a_grammar_that_dies_ends_its_request_alone(engine, monkeypatch):
    from sgjax.grammar import Matcher

    dying = params(regex="[a-z]{40}", max_new_tokens=50)
    monkeypatch.setattr(Matcher, "error", property(lambda self: "too complex" if self._num_tokens > 3 else None))
    free, dead = engine.generate(
        input_ids=[PROMPT, PROMPT], sampling_params=[params(max_new_tokens=30, ignore_eos=True), dying]
    )
    assert (dead.finish.kind, dead.finish.message) == ("abort", "too complex")
    assert (free.finish.kind, len(free.output_ids)) == ("length", 30)


@pytest.mark.parametrize("grammar", [None, "[a-z ]{900}"])
def test_a_script_that_ends_while_the_engine_works(grammar, tiny_settings):
    """Nobody closed the engine, a step is in flight: the exit status is still the script's own."""
    code = """
        import json, sys, sgjax
        engine = sgjax.Engine(**json.loads(sys.argv[1]))
        stream = engine.stream("Once", {"max_new_tokens": 400, "ignore_eos": True, "regex": json.loads(sys.argv[2])})
        next(stream)
        sys.exit(3)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(tiny_settings), json.dumps(grammar)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr


def test_nothing_compiles_late(make_engine):
    engine = make_engine(skip_warmup=False, chunked_prefill_size=32)
    engine.wait_until_compiled()
    keys = list(all_keys(engine._core.runner.buckets))
    assert engine.stats().num_steps_compiled == len(keys)  # no two of them are taken for the same
    for length in (5, 8, 12, 16):  # tokens of one step as many as rows of another
        scored = engine.generate(
            input_ids=[PROMPT[:length]] * 3,
            sampling_params=params(max_new_tokens=0),
            return_logprob=True,
            logprob_start_len=0,
        )
        assert [len(output.input_logprobs) for output in scored] == [length] * 3
    engine.generate(input_ids=prompts(), sampling_params=mixed())
    engine.generate(input_ids=PROMPT, sampling_params=params(regex="[ab]{3}", frequency_penalty=1), return_logprob=True)
    assert engine.stats().num_late_compiles == 0
