"""`sgjax doctor`: what is installed, what the machine has, what is missing and how to mend it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sgjax.config import cache_dir
from sgjax_server.progress import human_bytes

_PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "safetensors", "gguf", "orbax-checkpoint", "tokenizers", "huggingface_hub"),
    *("fastapi", "pydantic", "uvicorn", "uvloop"),
)
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_PROBE_S = 60
# In a process of its own: a broken driver or library can crash or hang an import.
_PROBE = """
import json, jax
print(json.dumps({"platforms": jax.config.jax_platforms, "devices": [
    {"platform": d.platform, "kind": d.device_kind, "memory": (d.memory_stats() or {}).get("bytes_limit")}
    for d in jax.devices()
]}))
"""
_MIN_FREE_DISK_BYTES = 1 << 30


class Finding(NamedTuple):
    """One line of the report. `remedy` says what to do; with `is_error` nothing can be served before that."""

    topic: str
    text: str
    remedy: str | None = None
    is_error: bool = False


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("doctor", help="show versions, devices, memory, caches, and what is missing")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    findings = [*_versions(), *_devices(), *_memory(), *_caches()]
    for finding in findings:
        print(f"{finding.topic:<18} {finding.text}")
        if finding.remedy is not None:
            print(f"{'':<18} {'ERROR' if finding.is_error else 'note'}: {finding.remedy}")
    num_errors = sum(finding.is_error for finding in findings)
    print("All well." if num_errors == 0 else f"{num_errors} to mend.")
    return 1 if num_errors else 0


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    for name in ("sgjax", *_PACKAGES):
        version = _version(name)
        if version is not None:
            yield Finding(name, version)
        else:
            yield Finding(name, "not installed", f"pip install {name}", is_error=True)
    for name in _PLUGINS:
        if (version := _version(name)) is not None:
            yield Finding(name, version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    found, problem = probe_devices()
    if problem is not None:
        yield Finding("devices", "jax does not start", problem, is_error=True)
        return
    devices = found["devices"]
    for number, device in enumerate(devices):
        memory = f", {human_bytes(device['memory'])}" if device["memory"] else ""
        yield Finding(f"device {number}", f"{device['platform']}: {device['kind']}{memory}")
    if _has_nvidia_gpu() and all(device["platform"] == "cpu" for device in devices):
        plugins = [name for name in _PLUGINS if _version(name)]
        remedy = "pip install 'sgjax[cuda13]' (or cuda12, for drivers before 580)"
        if plugins:
            remedy = (
                f"{', '.join(plugins)} is installed but finds no GPU: compare its version with jax's and the driver's"
            )
        if found["platforms"]:
            remedy = f"JAX_PLATFORMS={found['platforms']} is set; unset it to use the GPU"
        yield Finding("gpu", "an NVIDIA GPU is here and jax does not use it", remedy)


def probe_devices() -> tuple[dict[str, Any], str | None]:
    """jax's devices as a new process sees them, or why it sees none."""
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        return {}, f"importing jax and listing devices took more than {_PROBE_S} s; the GPU's driver may hang"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {}, f"exit status {done.returncode}: {last}; reinstall with pip install --force-reinstall jax jaxlib"
    return json.loads(done.stdout.splitlines()[-1]), None


def _has_nvidia_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0))
    yield Finding("host", f"{cores} usable cores, {human_bytes(total)} of memory, {human_bytes(free)} free")


def _caches() -> Iterator[Finding]:
    folder = cache_dir()
    yield _writable(folder)
    for name, text in (("models", "models"), ("compiled", "compiled steps")):
        files = [path for path in (folder / name).rglob("*") if path.is_file()] if (folder / name).is_dir() else []
        yield Finding("", f"{text}: {len(files)} files, {human_bytes(sum(path.stat().st_size for path in files))}")


def _writable(folder: Path) -> Finding:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("cache", str(folder), f"{existing} is not writable; set SGJAX_CACHE to a folder that is", True)
    free = shutil.disk_usage(existing).free
    little = "little space; models and compiled steps are kept there" if free < _MIN_FREE_DISK_BYTES else None
    return Finding("cache", f"{folder}, {human_bytes(free)} free", little)
