"""Puts the compiler for an H100 into a folder, so that tests can compile for that GPU on a machine that has none.

    python scripts/install_h100_compiler.py build/h100

The packages are the dependency group `h100` of pyproject.toml, about 264 MB, installed without their dependencies
(which would be the whole of CUDA) and outside the environment (where jax would try to use them as a GPU plugin). A
folder that is already there is kept. A failure is written to `FOLDER.unavailable`, which tests give as their reason to
skip; it is no error of this script.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
TIMEOUT_S = 900


def requirements() -> list[str]:
    """The group's packages; jax's own plugins in the version of the installed jax."""
    group = tomllib.loads(PYPROJECT.read_text())["dependency-groups"]["h100"]
    return [f"{name}=={version('jax')}" if name.startswith("jax-") else name for name in group]


def install(folder: Path) -> None:
    wanted = "\n".join(requirements())
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"H100 compiler: in {folder}")
        return
    unavailable = folder.with_suffix(".unavailable")
    partial = folder.with_suffix(".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    print(f"H100 compiler: downloading {', '.join(requirements())} (264 MB) to {folder}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", str(partial)]
    try:
        subprocess.run([*command, *requirements()], check=True, timeout=TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        unavailable.parent.mkdir(parents=True, exist_ok=True)
        unavailable.write_text(f"the packages that compile for an H100 could not be installed: {error}\n")
        print(f"H100 compiler: not available, its tests will be skipped: {error}", flush=True)
        return
    (partial / stamp.name).write_text(wanted)
    partial.rename(folder)
    unavailable.unlink(missing_ok=True)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
