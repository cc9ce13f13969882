"""How much may wait and be in flight before an engine refuses more."""

from __future__ import annotations

import pytest

import sgjax
from sgjax import SamplingParams


def test_queue_limit_refuses(make_engine):
    engine = make_engine(max_queued_requests=2, max_running_requests=1)
    sampling = SamplingParams(max_new_tokens=100, ignore_eos=True)
    for i in range(2):
        engine.submit(sgjax.Request(rid=str(i), input_ids=(1, 2), sampling=sampling))
    requests = [sgjax.Request(rid=str(i), input_ids=(1, 2), sampling=sampling) for i in range(2, 8)]
    with pytest.raises(sgjax.QueueFull, match="exceed 2, the limit"):  # not at once: one may be running already
        list(map(engine.submit, requests))


def test_queue_limit_counts_samples(make_engine):
    engine = make_engine(max_queued_requests=4, max_running_requests=1)
    engine.pause()
    engine.submit(sgjax.Request(rid="a", input_ids=(1, 2), sampling=SamplingParams(n=3)))
    with pytest.raises(sgjax.QueueFull, match="3 samples are waiting"):
        engine.submit(sgjax.Request(rid="b", input_ids=(1, 2), sampling=SamplingParams(n=2)))
    engine.submit(sgjax.Request(rid="c", input_ids=(1, 2)))
    with pytest.raises(sgjax.RequestError, match="more than the queue ever holds, 4"):
        engine.submit(sgjax.Request(rid="d", input_ids=(1, 2), sampling=SamplingParams(n=5)))
    engine.abort_requests("a")
    engine.submit(sgjax.Request(rid="e", input_ids=(1, 2), sampling=SamplingParams(n=3)))


def test_tokens_in_flight_are_bounded_until_their_requests_end(make_engine):
    engine = make_engine(max_tokens_in_flight=100)
    sampling = SamplingParams(max_new_tokens=20, ignore_eos=True, n=2)

    def submit(rid: str) -> sgjax.RequestHandle:
        return engine.submit(sgjax.Request(rid=rid, input_ids=(1,) * 10, sampling=sampling))

    engine.pause()
    first, second = submit("first"), submit("second")
    with pytest.raises(sgjax.QueueFull, match="100 tokens are in flight, and 50 more exceed 100"):
        submit("third")
    engine.resume()
    list(first)
    engine.abort("second")
    list(second)
    assert len(list(submit("third"))) >= 2
    with pytest.raises(sgjax.RequestError, match="110 tokens may be needed"):
        engine.submit(sgjax.Request(rid="r", input_ids=(1,) * 10, sampling=SamplingParams(max_new_tokens=100)))
    engine.generate(input_ids=[1] * 10, sampling_params={"max_new_tokens": 100})  # a script's own are not bounded
