"""What an installed sgjax is made of, and how the Makefile finds its Python."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sgjax

ROOT = Path(__file__).parents[1]
FIND_PYTHON = ROOT / "scripts" / "find_python.sh"


def installed_closure(name: str) -> set[str]:
    """Names of all packages that installing `name` without extras brings, as installed here."""
    found: set[str] = set()
    pending = [(name, "")]
    seen: set[tuple[str, str]] = set()
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                dependency = re.sub(r"[-_.]+", "-", requirement.name).lower()
                pending += [(dependency, one) for one in ("", *requirement.extras)]
    return found


def test_nothing_drags_in_torch():
    closure = installed_closure("sgjax")
    assert {"jax", "jaxlib", "numpy", "fastapi"} <= closure
    assert not closure & {"torch", "transformers", "tensorflow", "triton", "vllm"}


def test_version_is_the_same_everywhere():
    assert importlib.metadata.version("sgjax") == sgjax.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> list[str]:
    """What a wheel holds that is built from a clean copy, as a user's pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("sgjax", "server", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_a_wheel_holds_the_two_packages_and_no_other(wheel_names):
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sgjax", "sgjax_server"}
    for package in (ROOT / "sgjax", ROOT / "server" / "sgjax_server"):
        files = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        missing = {f.relative_to(package.parent).as_posix() for f in files} - set(wheel_names)
        assert not missing, "not packaged: see package-data in pyproject.toml"


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_no_module_is_called_server(tmp_path):
    result = run_python(
        "import sgjax, sgjax_server, importlib.util as u; assert u.find_spec('server') is None", tmp_path
    )
    assert result.returncode == 0, result.stderr


def test_types_and_settings_are_had_without_jax(tmp_path):
    code = "import sys, sgjax, sgjax.config, sgjax.cache.manager, sgjax_server.cli; assert 'jax' not in sys.modules"
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def find_python(tmp_path: Path, pythons: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script where only these executables exist: name to the shell script that it is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "awk", "ls", "head"):
        path = shutil.which(tool)
        assert path
        (folder / tool).symlink_to(path)
    for name, script in pythons.items():
        (folder / name).write_text(f"#!{folder}/bash\n{script}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": str(folder), "HOME": str(tmp_path), **variables}
    return subprocess.run([folder / "bash", FIND_PYTHON], env=env, capture_output=True, text=True, check=False)


OLD = 'case "$1" in -V) echo Python 3.11.9;; *) exit 1;; esac'
GOOD = f'exec {sys.executable} "$@"'
NO_VENV = f'case "$2" in *ensurepip*) exit 1;; esac; {GOOD}'
BROKEN_SHIM = "echo 'pyenv: python3.13: command not found' >&2; exit 127"


def test_an_old_python_is_passed_over_for_a_newer(tmp_path):
    found = find_python(tmp_path, {"python3": OLD, "python3.12": BROKEN_SHIM, "python3.13": GOOD})
    assert found.stdout.strip().endswith("bin/python3.13")


def test_without_a_new_python_it_says_what_is_there_and_what_to_do(tmp_path):
    found = find_python(tmp_path, {"python3": OLD})
    assert found.returncode == 1
    assert found.stdout == ""
    for text in ("needs Python 3.12", "bin/python3 (Python 3.11.9)", "pyenv install", "make PYTHON="):
        assert text in found.stderr


def test_a_python_that_cannot_make_environments_is_explained(tmp_path):
    found = find_python(tmp_path, {"python3": NO_VENV})
    assert found.returncode == 1
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in found.stderr


def test_a_chosen_python_is_taken_or_refused(tmp_path):
    chosen = find_python(tmp_path, {"python3": GOOD, "mine": GOOD}, PYTHON="mine")
    assert chosen.stdout.strip().endswith("bin/mine")
    shutil.rmtree(tmp_path / "bin")
    refused = find_python(tmp_path, {"python3": GOOD, "old": OLD}, PYTHON="old")
    assert "PYTHON=old is not a Python 3.12" in refused.stderr


def test_the_help_of_make_names_every_target():
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    env = {**os.environ, "MAKEFLAGS": ""}
    shown = subprocess.run([make, "help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    for target in set(phony[1].split()) - {"help"}:
        assert f"make {target} " in shown
