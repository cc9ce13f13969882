"""The GPU script, at tiny sizes on a CPU, with nothing installed that a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.goals import GOALS, judge
from benchmarks.gpu.table import derive
from benchmarks.gpu.workloads import Decode, Prefill
from sgjax.kernels import OP_NAMES

ROOT = Path(__file__).parents[2]
# Packages of the checkpoint formats and of the server: a machine that is lent for kernels has jax and flax at best.
# Two parts run what two others do, with another argument.
ALIKE = {"check xla", "step 8B"}
ABSENT = ("fastapi", "gguf", "jinja2", "orbax", "pydantic", "safetensors", "tokenizers", "transformers", "uvicorn")


def _run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder / "absent", ROOT)))}
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(folder / "out.json"), *flags]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "absent").mkdir()
    for name in ABSENT:
        (folder / "absent" / f"{name}.py").write_text(f"raise ImportError('{name} is not on this machine')")
    run = _run(folder, "--minutes", "60", "--only", ",".join(part for part in PARTS if part not in ALIKE))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"{len(OP_NAMES) + 1} of {len(OP_NAMES) + 1} checks passed" in run.stdout
    return json.loads((folder / "out.json").read_text())


def test_every_part_ran_and_every_check_passed(result):
    rows = result["rows"]
    assert {row["part"] for row in rows} == set(PARTS) - ALIKE
    assert not [row for row in rows if "failed" in row]
    checks = [row for row in rows if row["part"] == "check mosaic"]
    assert [row["name"].split()[0] for row in checks] == [*OP_NAMES]
    assert all(row["ok"] and 0 <= row["error"] <= row["tolerance"] for row in rows if "error" in row)
    (cascade,) = [row for row in rows if row["impl"] == "cascade against flat"]
    assert 0 < cascade["error"] <= cascade["tolerance"]


def test_what_is_not_installed_is_said_and_is_no_failure(result):
    left_out = {row["part"]: row["left_out"] for row in result["rows"] if "left_out" in row}
    assert set(left_out) == {part for part in PARTS if part.startswith("peer")} | {"offline 8B"}
    assert all("is not installed" in reason or "does not load" in reason for reason in left_out.values())


def test_figures_are_held_against_the_measured_ceilings(result):
    assert result["tiny"] is True
    assert set(result["ceilings"]) == {"copy_gb_per_s", "read_gb_per_s", "tflop_per_s"}
    assert {"python", "jax", "jaxlib", "flax"} <= set(result["versions"])
    assert result["device"] == "cpu"
    for row in result["rows"]:
        if row["part"] in ("decode", "cascade", "sampling", "step 1B") and "seconds" in row:
            expected = row["bytes"] / row["seconds"] / 1e9 / result["ceilings"]["read_gb_per_s"]
            assert row["fraction_of_ceiling"] == pytest.approx(expected)
        if row["part"] == "prefill":
            assert row["flops"] > 0
            assert row["fraction_of_ceiling"] > 0
    assert {goal["figure"] for goal in result["goals"]} == {None}, "tiny figures are held against no goal"


def test_a_part_without_time_is_left_out(tmp_path: Path):
    run = _run(tmp_path, "--minutes", "0")
    assert run.returncode == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["part"], row["left_out"]) for row in rows] == [(part, "no time was left for it") for part in PARTS]
    assert _run(tmp_path, "--only", "decode,prefil").returncode == 1


def test_offline_runs_the_real_engine(tmp_path: Path):
    run = _run(tmp_path, "--only", "offline 8B")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == [
        "engine start",
        "offline 4 requests, 20 in, 6 out",
        "offline 2 requests, 20 in, 4 out",
        "engine step, batch 1",
        "engine step, batch 8",
    ]
    assert rows["offline 4 requests, 20 in, 6 out"]["compiled_meanwhile"] == 0
    for batch in (1, 8):
        step = rows[f"engine step, batch {batch}"]
        assert step["idle_fraction"] == pytest.approx(max(0, 1 - step["device_s"] / step["seconds"]))
        assert 0 <= step["ran_dry_fraction"] <= 1


def test_nan_is_no_pass():
    rows = [{"part": "check xla", "name": "a", "error": float("nan"), "tolerance": 1.0}]
    derive(rows)
    assert rows[0]["ok"] is False


def test_goals_read_the_rows_of_the_workloads():
    """Of a run with the names that the parts give."""
    bandwidth = 3e12
    rows = [{"part": "ceilings", "name": "read", "seconds": 1.0, "bytes": bandwidth}]
    for case, fraction in ((Decode(64, 4096), 0.9), (Decode(64, 4096, 16), 0.8), (Decode(64, 8192), 0.85)):
        seconds = case.bytes / bandwidth / fraction
        rows.append({"part": "decode", "name": case.name, "impl": "sgjax", "seconds": seconds, "bytes": case.bytes})
    extend = Prefill(1024, 8192)
    for impl, seconds in (("sgjax", 1.0), ("sdpa", 1.2), ("flash-attn3-jax", 0.95), ("flashinfer", 0.5)):
        rows.append({"part": "x", "name": extend.name, "impl": impl, "seconds": seconds, "flops": extend.flops})
    rows.append({"part": "x", "name": "engine step, batch 64", "impl": "", "idle_fraction": 0.02})
    derive(rows)
    found = {goal["what"]: (goal["figure"], goal["reached"]) for goal in judge(rows) if goal["figure"] is not None}
    assert found == {
        "decode 64 x 4096, page 64": (pytest.approx(0.9), True),
        "decode 64 x 8192, page 64": (pytest.approx(0.85), False),
        "pages of 16 against 64": (pytest.approx(0.9 / 0.8), False),
        "extend 7168 by 1024, against contiguous": (pytest.approx(0.95), True),
        "idle, batch 64": (0.02, False),
    }
    assert len(GOALS) > len(found)
