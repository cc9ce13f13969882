"""The GPU script, at tiny sizes on a CPU, with nothing installed that a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.table import derive

ROOT = Path(__file__).parents[2]
# Packages of the checkpoint formats and of the server: a machine that is lent for kernels has jax and flax at best.
ABSENT = ("fastapi", "gguf", "jinja2", "orbax", "pydantic", "safetensors", "tokenizers", "transformers", "uvicorn")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("gpu")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not on this machine')")
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(folder / "out.json")]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "6 of 6 checks passed" in run.stdout
    return json.loads((folder / "out.json").read_text())


def test_every_part_ran_and_every_check_passed(result):
    assert {row["part"] for row in result["rows"]} == set(PARTS)
    assert not [row for row in result["rows"] if "failed" in row]
    checks = [row for row in result["rows"] if row["part"].startswith("check")]
    assert {(row["part"], row["name"].split()[0]) for row in checks} == {
        (f"check {impl}", op) for impl in ("xla", "mosaic") for op in ("write_kv", "paged_decode", "paged_prefill")
    }
    assert all(row["ok"] and 0 <= row["error"] <= row["tolerance"] for row in checks)


def test_figures_are_held_against_the_measured_ceilings(result):
    assert result["tiny"] is True
    assert set(result["ceilings"]) == {"copy_gb_per_s", "read_gb_per_s", "tflop_per_s"}
    assert {"python", "jax", "jaxlib", "flax"} <= set(result["versions"])
    assert result["device"] == "cpu"
    for row in result["rows"]:
        if row["part"] in ("decode", "step 8B", "step 1B"):
            expected = row["bytes"] / row["seconds"] / 1e9 / result["ceilings"]["read_gb_per_s"]
            assert row["fraction_of_ceiling"] == pytest.approx(expected)
        if row["part"] == "prefill":
            assert row["flops"] > 0
            assert row["fraction_of_ceiling"] > 0
    names = [row["name"] for row in result["rows"]]
    assert sum(name.startswith("axis order") for name in names) == 3
    assert "dispatch of 300 leaves, compiled" in names


def test_a_part_that_ends_early_keeps_its_rows_and_costs_the_others_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "0", "--out", str(tmp_path / "out.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout.count("FAILED") == len(PARTS)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["part"] for row in rows] == list(PARTS)


def test_nan_is_no_pass():
    rows = [{"part": "check xla", "name": "a", "error": float("nan"), "tolerance": 1.0}]
    derive(rows)
    assert rows[0]["ok"] is False
