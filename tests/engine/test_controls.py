"""Controls of a running engine: pause, new weights, a report of the step at work, traces."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import sgjax
from sgjax.types import RequestError

from .conftest import write_checkpoint

LONG = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine


def last(stream: Iterator[sgjax.GenerateOutput]) -> sgjax.GenerateOutput:
    *_, output = stream
    return output


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_pause_changes_no_token(engine: sgjax.Engine, mode):
    prompt = "Rain fell on the harbour, and"
    expected = engine.generate(prompt, LONG).output_ids
    engine.flush_cache()
    stream = engine.stream(prompt, LONG)
    next(stream)
    engine.pause(mode)
    paused = engine.stats()
    assert paused.is_paused
    assert (paused.num_running, paused.num_waiting) == ((1, 0) if mode == "in_place" else (0, 1))
    num_generated = engine.stats().counters.generated_tokens
    time.sleep(0.1)
    assert engine.stats().counters.generated_tokens == num_generated
    engine.resume()
    output = last(stream)
    assert output.output_ids == expected
    assert output.receipt.preemptions == (mode == "retract")
    engine.check()


def test_a_pause_that_aborts_ends_all_and_lets_new_ones_wait(engine: sgjax.Engine):
    stream = engine.stream("Rain fell", LONG)
    next(stream)
    engine.pause("abort")
    assert last(stream).finish.kind == "abort"
    waiting = engine.submit(
        sgjax.Request(rid="later", input_ids=(1, 2, 3), sampling=sgjax.SamplingParams(max_new_tokens=2))
    )
    assert engine.stats().num_waiting == 1
    engine.resume()
    assert [delta.finish for delta in waiting][-1].kind == "length"


def test_a_batch_is_aborted_by_its_id(engine: sgjax.Engine):
    rids = ["r", "r_0", "r_12", "r_x", "r_", "r1", "r_0_1", "s"]
    handles = {
        rid: engine.submit(sgjax.Request(rid=rid, input_ids=(1, 2), sampling=sgjax.SamplingParams(**LONG)))
        for rid in rids
    }
    engine.abort_requests("r")
    engine.abort_requests("unknown")
    kinds = {rid: [delta.finish for delta in handle][-1].kind for rid, handle in handles.items()}
    assert [rid for rid in rids if kinds[rid] == "abort"] == ["r", "r_0", "r_12"]
    handle = engine.submit(sgjax.Request(rid="all", input_ids=(1, 2), sampling=sgjax.SamplingParams(**LONG)))
    engine.abort_requests()
    assert [delta.finish for delta in handle][-1].kind == "abort"
    assert not engine.stats().is_paused


def test_new_weights_serve_without_a_restart(engine: sgjax.Engine, tmp_path: Path):
    zero, one = (write_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1))
    prompt, short = "The capital of France is", {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    assert engine.generate(prompt, short).receipt.weight_version == "default"
    replaced = [weakref.ref(weight) for weight in jax.tree.leaves(engine._core.runner.model.params)]
    stream = engine.stream("Rain fell on the harbour, and", LONG)
    next(stream)
    assert engine.update_weights(zero, "step-2") == "step-2"
    output = last(stream)  # which was under way goes on
    assert len(output.output_ids) == 60
    assert output.receipt.weight_version == engine.stats().weight_version == "step-2"
    before = engine.generate(prompt, short)
    num_compiled = engine.stats().num_steps_compiled
    assert all(weight() is None for weight in replaced), "the first weights are still in memory"
    engine.update_weights(one)
    other = engine.generate(prompt, short)
    assert other.output_ids != before.output_ids
    assert other.receipt.cached_tokens == 0  # computed with other weights, so forgotten
    assert engine.update_weights(zero) == zero
    assert engine.generate(prompt, short).output_ids == before.output_ids
    assert engine.stats().num_steps_compiled == num_compiled
    engine.check()


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_serve(engine: sgjax.Engine, tmp_path: Path):
    version = engine.stats().weight_version
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RequestError, match="model_path"):
            engine.update_weights(str(path))
    assert engine.stats().weight_version == version
    assert engine.generate("Hello", {"max_new_tokens": 2}).finish.kind == "length"


def idle(engine: sgjax.Engine) -> bool:
    """Waits until nothing is at work."""
    for _ in range(1000):
        if engine.step_report() is None:
            return True
        time.sleep(0.01)
    return False


def test_a_step_at_work_reports_its_requests_and_shape(engine: sgjax.Engine, monkeypatch):
    core = engine._core
    reports = []
    collect = core.runner.collect
    monkeypatch.setattr(core.runner, "collect", lambda handle: reports.append(engine.step_report()) or collect(handle))
    engine.generate("Hello there", LONG | {"max_new_tokens": 3}, rid="who")
    assert {report.rids for report in reports} == {("who",)}
    assert all(report.seconds >= 0 and report.shape[0] >= report.shape[1] >= 1 for report in reports)
    assert idle(engine)
    stream = engine.stream("Hello there", LONG)
    next(stream)
    assert engine.step_report() is not None
    engine.pause()
    assert engine.step_report() is None  # nothing hangs
    engine.resume()
    stream.close()
    assert idle(engine)


def test_waiting_for_a_compiler_is_not_hanging(engine: sgjax.Engine, monkeypatch):
    compiler = engine._core.runner.compiler
    compile_key, seconds = compiler._compile_key, []

    def slow(key):
        time.sleep(2.0)
        report = engine.step_report()
        seconds.append(report and report.seconds)
        return compile_key(key)

    monkeypatch.setattr(compiler, "_compile_key", slow)
    engine.generate("Hello", {"max_new_tokens": 1, "ignore_eos": True}, return_logprob=True, logprob_start_len=0)
    assert seconds
    assert max(seconds) < 2.0


def test_a_trace_is_written(engine: sgjax.Engine, tmp_path: Path):
    with pytest.raises(RequestError, match="profile"):
        engine.stop_profile()
    engine.start_profile(str(tmp_path))
    with pytest.raises(RequestError, match="output_dir"):
        engine.start_profile(str(tmp_path))
    engine.generate("Hello", {"max_new_tokens": 2})
    engine.stop_profile()
    assert list(tmp_path.rglob("*.xplane.pb"))
