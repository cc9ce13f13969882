"""What `Engine` promises: results, stops, log-probabilities, refusals, aborts, streams."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest

import sgjax
from sgjax import RequestError, SamplingParams

PROMPT = list(range(100, 140))
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)


def wait_for(condition, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def test_receipt_adds_up(engine):
    engine.flush_cache()
    first = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    again = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    assert first.output_ids == again.output_ids
    assert first.finish.kind == "length"
    r = first.receipt
    assert (r.prompt_tokens, r.completion_tokens, r.cached_tokens) == (40, 12, 0)
    assert r.computed_tokens == 40 + 11
    assert r.pages == 4
    assert 0 <= r.queue_s <= r.ttft_s <= r.e2e_s
    assert again.receipt.cached_tokens == 32


def test_the_first_chunk_tells_what_was_cached(engine):
    engine.flush_cache()
    for cached in (0, 32):
        first, *_ = engine.stream(input_ids=PROMPT, sampling_params=GREEDY)
        assert first.receipt.cached_tokens == cached


def test_text_ids_and_messages_are_the_same_prompt(engine):
    messages = [{"role": "user", "content": "Hello"}]
    ids = engine.tokenizer.encode_chat(messages)
    text = engine.tokenizer.apply_chat_template(messages)
    outputs = [
        engine.generate(text, GREEDY),
        engine.generate(input_ids=ids, sampling_params=GREEDY),
        engine.generate(messages=messages, sampling_params=GREEDY),
    ]
    assert len({tuple(output.output_ids) for output in outputs}) == 1
    assert outputs[0].text == engine.tokenizer.decode(outputs[0].output_ids)


def test_a_list_gives_a_list_in_order(engine):
    params = [{"temperature": 0, "max_new_tokens": n} for n in (3, 1, 2)]
    outputs = engine.generate(["a", "b", "c"], params, progress=True)
    assert [output.receipt.completion_tokens for output in outputs] == [3, 1, 2]
    assert engine.generate(["a"], params[:1])[0].output_ids == outputs[0].output_ids


def test_stop_string_cuts_the_text(engine):
    text = engine.generate(input_ids=PROMPT, sampling_params=GREEDY).text
    stop = text[len(text) // 2 :][:3]
    params = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True, "stop": ["never", stop]}
    output = engine.generate(input_ids=PROMPT, sampling_params=params)
    assert output.text == text[: text.index(stop)]
    assert (output.finish.kind, output.finish.matched) == ("stop", stop)
    kept = engine.generate(input_ids=PROMPT, sampling_params={**params, "no_stop_trim": True})
    assert kept.text == text[: text.index(stop) + len(stop)]
    streamed = [o.text for o in engine.stream(sampling_params=params, input_ids=PROMPT)]
    assert all(text.startswith(piece) for piece in streamed)
    assert streamed[-1] == output.text


def test_stop_regex_and_stop_token(engine):
    plain = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    token = plain.output_ids[4]
    first = plain.output_ids.index(token)
    params = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    output = engine.generate(input_ids=PROMPT, sampling_params={**params, "stop_token_ids": token})
    assert output.output_ids == plain.output_ids[: first + 1]
    assert (output.finish.kind, output.finish.matched) == ("stop", token)
    assert output.text == engine.tokenizer.decode(plain.output_ids[:first])
    later = engine.generate(
        input_ids=PROMPT, sampling_params={**params, "stop_token_ids": [token], "min_new_tokens": 12}
    )
    assert token not in later.output_ids
    assert len(later.output_ids) == 12
    by_regex = engine.generate(input_ids=PROMPT, sampling_params={**params, "stop_regex": "[a-z]{2}"})
    assert by_regex.finish.kind == "stop"
    assert by_regex.receipt.completion_tokens < 12


def test_logit_bias_and_penalties(engine):
    params = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    forced = engine.generate(input_ids=PROMPT, sampling_params={**params, "logit_bias": {"777": 1000.0}})
    assert forced.output_ids == [777] * 6
    spread = engine.generate(
        input_ids=PROMPT,
        sampling_params={**params, "logit_bias": {777: 50.0, 778: 50.0, 779: 50.0}, "presence_penalty": 2.0},
    )
    assert set(spread.output_ids[:3]) == {777, 778, 779}


def test_logprobs_of_output_match_those_of_the_prompt(engine):
    output = engine.generate(
        input_ids=PROMPT,
        sampling_params=GREEDY,
        return_logprob=True,
        top_logprobs_num=3,
        token_ids_logprob=(5, 6),
    )
    assert len(output.output_logprobs) == 12
    for token, found in zip(output.output_ids, output.output_logprobs, strict=True):
        assert found.token_id == token == found.top[0][0]
        assert found.logprob == found.top[0][1] <= 0
        assert [t for t, _ in found.asked] == [5, 6]
    scored = engine.generate(
        input_ids=PROMPT + output.output_ids,
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=len(PROMPT),
        top_logprobs_num=3,
    )
    assert scored.finish.kind == "length"
    assert scored.output_ids == []
    np.testing.assert_allclose(
        [found.logprob for found in scored.input_logprobs],
        [found.logprob for found in output.output_logprobs],
        atol=1e-4,
    )


def test_prompt_logprobs_over_several_chunks(engine):
    prompt = np.random.default_rng(3).integers(10, 49000, 300).tolist()
    whole = engine.generate(
        input_ids=prompt, sampling_params={"max_new_tokens": 1}, return_logprob=True, logprob_start_len=0
    )
    assert [found.token_id for found in whole.input_logprobs] == prompt
    assert whole.input_logprobs[0].logprob is None
    late = engine.generate(
        input_ids=prompt, sampling_params={"max_new_tokens": 1}, return_logprob=True, logprob_start_len=250
    )
    assert late.receipt.cached_tokens == 240
    np.testing.assert_allclose(
        [found.logprob for found in late.input_logprobs],
        [found.logprob for found in whole.input_logprobs[250:]],
        atol=1e-4,
    )


def test_score_is_a_distribution_over_labels(engine):
    scores = engine.score("The answer is", [" yes", " no"], [10, 20, 30])
    np.testing.assert_allclose(np.sum(scores, axis=1), 1.0, rtol=1e-5)
    raw = engine.score("The answer is", [" yes", " no"], [10, 20, 30], apply_softmax=False)
    assert (np.asarray(raw) < np.asarray(scores)).all()


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("input_ids", {"input_ids": []}),
        ("input_ids", {"input_ids": [1, 49152]}),
        ("input_ids", {"input_ids": [1] * 512}),
        ("max_new_tokens", {"input_ids": [1] * 500, "sampling_params": {"max_new_tokens": 13}}),
        ("temperature", {"input_ids": [1], "sampling_params": {"temperature": -1}}),
        ("min_new_tokens", {"input_ids": [1], "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 8}}),
        ("logit_bias", {"input_ids": [1], "sampling_params": {"logit_bias": {99999: 1}}}),
        ("top_logprobs_num", {"input_ids": [1], "return_logprob": True, "top_logprobs_num": 99}),
        ("return_logprob", {"input_ids": [1], "top_logprobs_num": 2}),
        ("frobnicate", {"input_ids": [1], "sampling_params": {"frobnicate": 1}}),
        ("prompts", {"prompts": "a", "input_ids": [1]}),
    ],
)
def test_bad_requests_are_refused_by_field(engine, field, arguments):
    with pytest.raises(RequestError) as caught:
        engine.generate(**arguments)
    assert caught.value.field == field


def test_abort_ends_the_stream_and_frees_pages(make_engine):
    engine = make_engine(disable_radix_cache=True)
    outputs = engine.stream(input_ids=PROMPT, sampling_params={"max_new_tokens": 400, "ignore_eos": True}, rid="x")
    next(outputs)
    assert engine.abort("x")
    last = list(outputs)[-1]
    assert last.finish.kind == "abort"
    assert not engine.abort("x")
    wait_for(lambda: engine.stats().num_running == 0)
    stats = engine.stats()
    assert stats.cache.num_free == stats.cache.num_pages


def test_leaving_a_stream_early_aborts(make_engine):
    engine = make_engine()
    for _ in itertools.islice(engine.stream(input_ids=PROMPT, sampling_params={"max_new_tokens": 400}), 2):
        pass
    wait_for(lambda: engine.stats().num_running == 0)
    assert engine.stats().counters.num_aborted == 1


def test_async_twins(engine):
    async def main():
        outputs = await engine.async_generate(input_ids=[PROMPT, PROMPT[:20]], sampling_params=GREEDY)
        pieces = [(o.text, len(o.output_ids)) async for o in engine.async_stream(None, GREEDY, input_ids=PROMPT)]
        return outputs, pieces

    outputs, pieces = asyncio.run(main())
    expected = engine.generate(input_ids=[PROMPT, PROMPT[:20]], sampling_params=GREEDY)
    assert [o.output_ids for o in outputs] == [o.output_ids for o in expected]
    assert pieces[-1] == (expected[0].text, 12)
    assert len(pieces) == 12


def test_a_live_rid_is_refused(engine):
    stream = engine.stream(input_ids=PROMPT, sampling_params={"max_new_tokens": 200, "ignore_eos": True}, rid="same")
    next(stream)
    with pytest.raises(RequestError, match="rid"):
        engine.generate(input_ids=PROMPT, rid="same")
    stream.close()


def test_in_flight_prefix_is_computed_once(make_engine):
    engine = make_engine()
    shared = np.random.default_rng(1).integers(10, 49000, 256).tolist()
    prompts = [[*shared, i, i + 1, i + 2] for i in range(8)]
    outputs = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    assert sum(output.receipt.cached_tokens for output in outputs) == 7 * 256
    computed = sum(output.receipt.computed_tokens - 11 for output in outputs)
    assert computed == 256 + 8 * 3


def test_extra_key_separates_prefixes(make_engine):
    engine = make_engine()
    hits = [
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY, extra_key=key).receipt.cached_tokens
        for key in ("a", "b", "a", "")
    ]
    assert hits == [0, 0, 32, 0]


def test_flush_forgets(make_engine):
    engine = make_engine()
    engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    assert engine.flush_cache() == 3
    assert engine.generate(input_ids=PROMPT, sampling_params=GREEDY).receipt.cached_tokens == 0


def test_long_prompt_does_not_hold_up_decoding(make_engine):
    engine = make_engine(chunked_prefill_size=32, disable_radix_cache=True)
    stream = engine.stream(input_ids=PROMPT, sampling_params={"max_new_tokens": 200, "ignore_eos": True})
    next(stream)
    before = engine.stats().counters
    engine.generate(input_ids=[7] * 320, sampling_params={"max_new_tokens": 1})
    after = engine.stats().counters
    assert after.prefill_steps - before.prefill_steps == 10
    assert after.decode_steps - before.decode_steps >= 9
    stream.close()


def test_close_tells_open_requests(make_engine):
    engine = make_engine()
    handle = engine.submit(
        sgjax.Request(rid="r", input_ids=(1, 2), sampling=SamplingParams(max_new_tokens=500, ignore_eos=True))
    )
    threading.Timer(0.2, engine.close).start()
    with pytest.raises(sgjax.EngineError, match="closed"):
        list(handle)
    with pytest.raises(sgjax.EngineError, match="closed"):
        engine.generate(input_ids=[1])


def test_a_failing_step_fails_requests_with_the_reason(make_engine, monkeypatch):
    engine = make_engine()

    def fail(batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._core.packer, "pack", fail)
    with pytest.raises(sgjax.EngineError, match="out of memory"):
        engine.generate(input_ids=[1, 2])
    assert not engine.is_alive
    assert isinstance(engine.failure, RuntimeError)


def test_a_leak_is_noticed_when_idle(make_engine, monkeypatch, caplog):
    monkeypatch.setattr("sgjax.engine.loop.IDLE_CHECK_S", 0.05)
    engine = make_engine()
    engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    time.sleep(0.2)
    assert engine.stats().num_integrity_failures == 0
    leaked = engine._core.scheduler.cache.allocate(1)
    engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    wait_for(lambda: "not accounted for" in caplog.text)
    assert engine.stats().num_integrity_failures >= 1
    assert engine.is_alive
    engine._core.scheduler.cache.free(leaked)


def test_nothing_compiles_while_serving(make_engine):
    import jax

    engine = make_engine(skip_warmup=False, max_running_requests=4, chunked_prefill_size=64, context_length=128)
    engine.wait_until_compiled()
    compiled: list[str] = []
    num_by_kind = engine.stats().num_compiled_by_kind
    assert num_by_kind.keys() >= {"forward", "sample"}

    def listen(event: str, duration_s: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(10, 49000, n).tolist() for n in (1, 3, 20, 40, 64, 65, 100)]
        mixtures = [
            {"temperature": 0},
            {"top_k": 5},
            {"top_p": 0.5, "min_p": 0.1},
            {"frequency_penalty": 1.0, "repetition_penalty": 1.2},
            {"logit_bias": {5: 1}},
            {"min_new_tokens": 4},
            {"n": 3},
        ]
        params = [{**mixture, "max_new_tokens": 8} for mixture in mixtures]
        engine.generate(input_ids=prompts, sampling_params=params)
        engine.generate(input_ids=prompts, sampling_params=params, return_logprob=True, top_logprobs_num=4)
        engine.generate(input_ids=prompts, sampling_params=params, return_logprob=True, logprob_start_len=0)
        assert engine.stats().num_late_compiles == 0
        assert engine.stats().num_compiled_by_kind == num_by_kind
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_one_refused_prompt_leaves_none_of_the_others_running(make_engine):
    engine = make_engine()
    with pytest.raises(RequestError):
        engine.generate(input_ids=[PROMPT, [1] * 600], sampling_params={"max_new_tokens": 400, "ignore_eos": True})
    wait_for(lambda: engine.stats().num_running == engine.stats().num_waiting == 0)
    assert engine.stats().counters.num_aborted == 1


def test_a_refused_stream_does_not_abort_the_rids_owner(engine):
    owner = engine.stream(input_ids=PROMPT, sampling_params={"max_new_tokens": 40, "ignore_eos": True}, rid="mine")
    next(owner)
    with pytest.raises(RequestError, match="rid"):
        next(engine.stream(input_ids=PROMPT, rid="mine"))
    assert list(owner)[-1].finish.kind == "length"


def test_an_answer_as_long_as_possible_ends_with_a_small_pool(make_engine):
    engine = make_engine(max_total_tokens=128)
    output = engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": None, "ignore_eos": True})
    assert (output.finish.kind, len(output.output_ids)) == ("length", 128 - 40)
    with pytest.raises(RequestError, match="never fit"):
        engine.generate(input_ids=[1] * 128, sampling_params={"max_new_tokens": None})
    with pytest.raises(RequestError, match="never fit"):
        engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": 89})


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("extra_key", {"extra_key": "\ud800"}),
        ("extra_key", {"extra_key": 5}),
        ("priority", {"priority": "x"}),
        ("top_logprobs_num", {"return_logprob": True, "top_logprobs_num": 1.5}),
        ("stop_regex", {"sampling_params": {"stop_regex": "a{99999999999}"}}),
        ("stop", {"sampling_params": {"stop": ["x"] * 33}}),
    ],
)
def test_odd_values_never_reach_the_engines_thread(engine, field, options):
    with pytest.raises(RequestError) as caught:
        engine.generate(input_ids=PROMPT, **options)
    assert caught.value.field == field
    assert engine.is_alive
