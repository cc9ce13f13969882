"""The tuner: what it tries and adopts, and the file that it leaves for the registry."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from benchmarks import kernels, tune
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.paged_decode import specs, xla
from sgjax.kernels.tuning import Bucket, Tuned, read_ops, with_tuning


@dataclasses.dataclass(frozen=True)
class Tuning:
    block: int = 64
    stages: int = 2


VALUES = {"block": (64, 128, 256), "stages": (2, 3, 4)}


def test_search_goes_field_by_field_until_nothing_helps():
    """More stages pay only with the larger block, which pays only with more stages than that of the default."""
    times = {(64, 2): 1.0, (64, 3): 0.9, (128, 3): 0.8, (128, 4): 0.7, (256, 4): 0.6}
    tried = []

    def seconds(tuning: Tuning) -> float | None:
        tried.append(tuning)
        return None if tuning == Tuning(256, 2) else times.get((tuning.block, tuning.stages), 2.0)

    assert tune.search(Tuning(), VALUES, seconds, lambda tuning: True) == (Tuning(256, 4), 0.6, 1.0)
    assert len(tried) == len(set(tried)) <= 9
    assert tune.search(Tuning(), VALUES, seconds, lambda tuning: tuning != Tuning(64, 3)) == (Tuning(), 1.0, 1.0)
    with pytest.raises(ValueError, match="is wrong"):
        tune.search(Tuning(), VALUES, seconds, lambda tuning: False)
    within_noise = {2: 1.0, 3: 0.99, 4: 0.985}
    found = tune.search(Tuning(), {"stages": (3, 4)}, lambda tuning: within_noise[tuning.stages], lambda tuning: True)
    assert found[0] == Tuning()


def test_what_is_adopted_is_right_and_the_registry_reads_it(tmp_path: Path, monkeypatch, capsys):
    """A kernel that is wrong with the sizes that would be fastest, and breaks with others."""

    def paged_decode(*args, tuning=Tuning(), **kwargs):
        if tuning.stages == 4:
            raise RuntimeError("too much shared memory")
        return xla.paged_decode(*args, **kwargs) * (2 if tuning.block == 256 else 1)

    def clock(kernel, *inputs):
        jax.eval_shape(kernel, *case.shapes())
        return 1.0 / kernel.keywords["tuning"].block

    monkeypatch.setattr(tune, "chain_s", clock)
    case = AttentionCase(kv_lens=(64,) * 4, dtype="float32")
    module = SimpleNamespace(Tuning=Tuning, paged_decode=paged_decode)
    path = tmp_path / "fake.json"
    tune.tune_cases("paged_decode", module, [case], VALUES, path, "Fake 1")
    out = capsys.readouterr().out
    assert "wrong by" in out
    assert "too much shared memory" in out
    (entry,) = read_ops(path)["paged_decode"]
    assert entry["bucket"] == dataclasses.asdict(Bucket(64, 16, 2, "float32", 4))
    assert entry["tuning"] == {"block": 128, "stages": 2}
    assert entry["us"] < entry["us_by_default"]
    tuned = with_tuning("paged_decode", paged_decode, Tuning, path)
    assert isinstance(tuned, Tuned)
    assert tuned.choose(Bucket(64, 16, 2, "float32", 2)) == Tuning(128)


@pytest.mark.parametrize(("flags", "said"), [(["--tune"], "measuring on a GPU"), (["--impl", "xla,mosaic"], "--check")])
def test_a_cpu_says_what_it_cannot_do(monkeypatch, flags, said):
    monkeypatch.setattr(sys, "argv", ["kernels", "paged_decode", *flags])
    with pytest.raises(SystemExit, match=said):
        kernels.main()


MINE = """
from sgjax.kernels.paged_decode.xla import paged_decode as theirs

def decode(*args, window=None, **kwargs):
    if window:
        raise NotImplementedError("no windows")
    return 1.5 * theirs(*args, **kwargs)
"""


def test_a_researchers_kernel_is_checked_and_timed(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path / 'mine.py'}:decode"
    monkeypatch.setattr(specs, "PARITY", (AttentionCase(kv_lens=(9, 0)), AttentionCase(kv_lens=(9,), window=3)))
    monkeypatch.setattr(specs, "BENCHMARK_CPU", (AttentionCase(kv_lens=(70,) * 4),))
    argv = ["kernels", "paged_decode", "--impl", f"xla,{name}", "--check"]
    monkeypatch.setattr(sys, "argv", argv)
    kernels.main()
    lines = capsys.readouterr().out.splitlines()
    assert f"{name} error 5.0e-01" in lines[0]
    assert f"{name} refuses: no windows" in lines[1]
    argv[4:] = ["--layers", "1", "--repeats", "1", "--out", str(tmp_path / "out.json")]
    kernels.main()
    assert '"xla_ms"' in (tmp_path / "out.json").read_text()
    argv[4:] = ["--case", "no such"]
    with pytest.raises(SystemExit, match=r"4x70.* contains 'no such'"):
        kernels.main()
