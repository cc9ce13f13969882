"""Compiles the native kernels with the machine's C++ compiler, once per machine, and registers them with XLA."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.ffi
from jaxlib.version import __version__ as _jaxlib_version

_TARGETS = ("sgjax_paged_decode", "sgjax_paged_prefill")
_COMPILERS = ("c++", "g++", "clang++")
# Contraction, so that a * b + c is one instruction: GCC leaves it out under -std=c++17.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-fvisibility=hidden")
_COMPILE_TIMEOUT_S = 300


class _Unavailable(Exception):
    """Why there is no library, in words."""


@functools.cache
def unavailable() -> str | None:
    """Why the native kernels cannot be used in this process; None when they can.

    The first call compiles them (some seconds) unless this machine has done so before, and registers them with XLA.
    """
    try:
        path = _build(_folder())
        library = ctypes.CDLL(str(path))
    except (_Unavailable, OSError) as error:
        return str(error)
    for target in _TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return None


def _build(folder: Path) -> Path:
    """The shared library in `folder`, compiled when it is not there for these sources, compiler, CPU and jaxlib."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise _Unavailable(f"no C++ compiler (looked for {', '.join(_COMPILERS)})")
    here = Path(__file__).parent
    sources = sorted([*here.glob("*.cc"), *here.glob("*.h")])
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    # The predefined macros name the compiler, its version and every instruction set that this CPU has.
    digest.update(_run([compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull]))
    digest.update(" ".join((*_FLAGS, _jaxlib_version)).encode())
    path = folder / f"attention-{digest.hexdigest()[:24]}.so"
    if not path.exists():
        # Under another name first: other processes may be looking, or compiling the same.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            units = [str(source) for source in sources if source.suffix == ".cc"]
            _run([compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), *units, "-o", str(built)])
            built.replace(path)
    return path


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else f"status {error.returncode}")
        raise _Unavailable(f"{command[0]} failed: {first}") from error
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"{command[0]} did not end within {_COMPILE_TIMEOUT_S} s") from error


def _folder() -> Path:
    """A folder that nobody else may write to: beside JAX's compile cache when there is one, else a temporary one.

    What lies there is loaded as code, so that a folder of somebody else, or one that others may write to, is refused.
    """
    cache = jax.config.jax_compilation_cache_dir
    folder = Path(cache) / "native" if cache and "://" not in cache else None
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"sgjax-native-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise _Unavailable(f"{folder} must be a folder of this user that no other may write to")
    return folder
