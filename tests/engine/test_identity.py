"""Greedy output does not depend on how the work was cut up: cache, chunks, neighbours, overlap, preemption."""

from __future__ import annotations

import numpy as np
import pytest

from sgjax import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48, ignore_eos=True)


def make_prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    shared = rng.integers(10, 49000, 70).tolist()
    lengths = (1, 15, 16, 17, 31, 40, 64, 100, 180, 250)
    own = [rng.integers(10, 49000, n).tolist() for n in lengths]
    return own + [shared + tail[:20] for tail in own[4:]] + [shared, shared[:48]]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return make_prompts()


@pytest.fixture(scope="module")
def alone(tiny_settings, prompts) -> list[list[int]]:
    """One at a time, nothing shared, one chunk, no overlap."""
    import sgjax

    settings = {
        **tiny_settings,
        "disable_radix_cache": True,
        "disable_overlap_schedule": True,
        "chunked_prefill_size": 512,
    }
    with sgjax.Engine(**settings) as engine:
        return [engine.generate(input_ids=prompt, sampling_params=GREEDY).output_ids for prompt in prompts]


SMALL_POOL = {"max_total_tokens": 320, "context_length": 300}
VARIANTS: dict[str, dict] = {
    "crowd": {},
    "no-cache": {"disable_radix_cache": True},
    "small-chunks": {"chunked_prefill_size": 32},
    "no-overlap": {"disable_overlap_schedule": True},
    "large-pages": {"page_size": 64},
    "fcfs": {"schedule_policy": "fcfs"},
    "preempted": {"max_total_tokens": 320, "context_length": 300},
    "preempted-no-cache": {
        "max_total_tokens": 320,
        "context_length": 300,
        "disable_radix_cache": True,
        "chunked_prefill_size": 64,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_output_is_the_same(variant, make_engine, prompts, alone):
    engine = make_engine(**VARIANTS[variant])
    outputs = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    assert [output.output_ids for output in outputs] == alone
    counters = engine.stats().counters
    if variant.startswith("preempted"):
        assert counters.num_preemptions > 0
    if "no-cache" in variant:
        assert counters.cached_tokens == 0
    again = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    assert [output.output_ids for output in again] == alone
    if variant == "crowd":
        assert all(out.receipt.cached_tokens >= (len(p) - 1) // 16 * 16 for out, p in zip(again, prompts, strict=True))


def test_seeds_reproduce_whatever_the_neighbours(make_engine, prompts):
    engine = make_engine()
    params = [SamplingParams(seed=i, max_new_tokens=16, top_p=0.9, ignore_eos=True) for i in range(len(prompts))]
    alone = [engine.generate(input_ids=p, sampling_params=s).output_ids for p, s in zip(prompts, params, strict=True)]
    crowd = engine.generate(input_ids=prompts, sampling_params=params)
    assert [output.output_ids for output in crowd] == alone
    other = engine.generate(input_ids=prompts[5], sampling_params=SamplingParams(seed=99, max_new_tokens=16))
    assert other.output_ids != alone[5]


def test_samples_of_one_request_differ_and_match_their_seeds(make_engine, prompts):
    engine = make_engine()
    outputs = engine.generate(input_ids=prompts[3], sampling_params={"n": 3, "seed": 7, "max_new_tokens": 12})
    assert [output.index for output in outputs] == [0, 1, 2]
    for output in outputs:
        one = engine.generate(input_ids=prompts[3], sampling_params={"seed": 7 + output.index, "max_new_tokens": 12})
        assert one.output_ids == output.output_ids
    assert len({tuple(output.output_ids) for output in outputs}) == 3
