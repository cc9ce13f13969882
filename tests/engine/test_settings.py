"""Settings that change how the engine is built, and those that are refused."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from sgjax.config import ConfigError
from sgjax.engine import memory

GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
PROMPT = list(range(50, 90))


def kv_dtype(engine) -> str:
    return str(engine._core.runner._cache[0][0].dtype)


def test_dtypes(make_engine):
    plain = make_engine()
    assert (plain.config.dtype, plain.config.kv_cache_dtype, kv_dtype(plain)) == ("float32",) * 3
    small_kv = make_engine(kv_cache_dtype="bfloat16")
    assert kv_dtype(small_kv) == "bfloat16"
    small = make_engine(dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(small._core.runner.model.params)} == {"bfloat16"}
    assert kv_dtype(small) == "bfloat16"
    np.testing.assert_allclose(prompt_logprobs(small_kv), exact := prompt_logprobs(plain), atol=0.1)
    assert prompt_logprobs(small_kv) != exact


def prompt_logprobs(engine) -> list[float]:
    params = {"max_new_tokens": 0}
    output = engine.generate(input_ids=PROMPT, sampling_params=params, return_logprob=True, logprob_start_len=1)
    return [found.logprob for found in output.input_logprobs]


def test_a_cache_of_8_bits_takes_half_the_memory_of_16_and_is_nearly_right(make_engine):
    plain, small = make_engine(), make_engine(kv_cache_dtype="fp8_e4m3")
    assert kv_dtype(small) == "float8_e4m3fn"
    assert plain.info.kv_cache_bytes == 4 * small.info.kv_cache_bytes
    error = np.abs(np.subtract(prompt_logprobs(small), prompt_logprobs(plain)))
    assert 0 < error.mean() < 0.15


def test_a_second_start_does_not_measure_scratch_space_again(make_engine, monkeypatch, tmp_path):
    first = make_engine(compile_cache_dir=str(tmp_path))
    assert len(list(tmp_path.glob("scratch-*.json"))) == 1
    monkeypatch.setattr("sgjax.engine.lowering.Lowering.compile", None)
    second = make_engine(compile_cache_dir=str(tmp_path))
    assert first.config == second.config


def test_context_length(make_engine):
    engine = make_engine(context_length=64)
    with pytest.raises(ValueError, match="context of 64"):
        engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": 25})
    output = engine.generate(input_ids=PROMPT, sampling_params={**GREEDY, "max_new_tokens": None})
    assert (len(output.output_ids), output.finish.kind) == (24, "length")


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("context_length", {"context_length": 100_000}),
        ("max_total_tokens", {"max_total_tokens": 10**12}),
        ("context_length", {"max_total_tokens": None, "mem_fraction_static": 1e-7}),
        ("page_size", {"page_size": 24}),
        ("schedule_policy", {"schedule_policy": "random"}),
        ("mem_fraction_static", {"mem_fraction_static": 1.5}),
    ],
)
def test_refused(make_engine, field, settings):
    with pytest.raises(ConfigError) as caught:
        make_engine(**settings)
    assert caught.value.field == field


def test_dummy_weights_follow_the_seed(make_engine):
    outputs = [make_engine(random_seed=seed).generate(input_ids=PROMPT, sampling_params=GREEDY) for seed in (0, 0, 1)]
    assert outputs[0].output_ids == outputs[1].output_ids != outputs[2].output_ids


def test_requests_without_a_seed_follow_the_engines(make_engine):
    params = {"max_new_tokens": 8, "ignore_eos": True}
    first, second = (make_engine(random_seed=3) for _ in range(2))
    drawn = [engine.generate(input_ids=[PROMPT, PROMPT], sampling_params=params) for engine in (first, second)]
    assert [o.output_ids for o in drawn[0]] == [o.output_ids for o in drawn[1]]
    assert drawn[0][0].output_ids != drawn[0][1].output_ids


def test_pool_takes_what_weights_and_scratch_leave():
    gpu = types.SimpleNamespace(
        platform="gpu", memory_stats=lambda: {"bytes_limit": 80 << 30, "bytes_in_use": 16 << 30}
    )
    arguments = {
        "page_bytes": 2 << 20,
        "page_size": 16,
        "scratch_bytes": 1 << 30,
        "weight_bytes": 16 << 30,
        "most_tokens": 10**9,
        "max_total_tokens": None,
        "mem_fraction": None,
        "context_length": 8192,
    }
    pages = memory.pool_pages(gpu, **arguments)
    assert 60 << 30 < pages * (2 << 20) < 63 << 30
    half = memory.pool_pages(gpu, **{**arguments, "mem_fraction": 0.5})
    assert 22 << 30 < half * (2 << 20) < 24 << 30
    assert memory.pool_pages(gpu, **{**arguments, "max_total_tokens": 1000}) == 63


def test_what_caches_files_is_unused_memory(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 6000 kB\nHugePages_Free: 0\n"
    )
    assert memory.unused_bytes(tmp_path) == 6000 << 10
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("max", "max"), ("current", str(2900 << 10)), ("stat", f"anon 0\ninactive_file {900 << 10}\n")):
        (group / f"memory.{name}").write_text(text)
    assert memory.unused_bytes(tmp_path) == 6000 << 10
    (group / "memory.max").write_text(str(3000 << 10))
    assert memory.unused_bytes(tmp_path) == 1000 << 10
