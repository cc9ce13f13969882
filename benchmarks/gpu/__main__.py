"""One call that checks and times everything on a GPU: see README.md. It has not run on a GPU yet.

    python -m benchmarks.gpu [--out FILE.json] [--minutes 9] [--only decode,prefill] [--tiny]

Every part is a process of its own, so that one which fails, faults or takes too long costs the others nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.goals import judge
from benchmarks.gpu.report import Settings
from benchmarks.gpu.table import derive, print_table


class Part(NamedTuple):
    """`benchmarks.gpu.<module>.<function>`, and the seconds it may take at most."""

    module: str
    function: str
    limit_s: float


# What matters most comes first: a run that is cut off has those rows.
PARTS = {
    "ceilings": Part("ceilings", "run", 40),
    "check mosaic": Part("checks", "check_mosaic", 100),
    "decode": Part("attention", "time_decode", 100),
    "prefill": Part("attention", "time_prefill", 50),
    "step 8B": Part("steps", "run_8b", 90),
    "offline 8B": Part("offline", "run", 150),
    "sampling": Part("sampling", "run", 60),
    "cascade": Part("attention", "time_cascade", 30),
    "peer flashinfer": Part("peers.flash_infer", "run", 80),
    "peer flash-attn3-jax": Part("peers.flash3", "run", 40),
    "peer sdpa": Part("peers.sdpa", "run", 40),
    "peer flex_attention": Part("peers.flex", "run", 60),
    "step 1B": Part("steps", "run_1b", 90),
    "peer transformers": Part("peers.continuous_batching", "run", 80),
    "check xla": Part("checks", "check_xla", 90),
}


def main() -> None:
    args = _arguments()
    if args.part:
        return _run_part(args)
    only = [name.strip() for name in args.only.split(",") if name.strip()] or list(PARTS)
    if unknown := set(only) - set(PARTS):
        raise SystemExit(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    deadline = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        for name in only:
            limit_s = PARTS[name].limit_s * (10 if args.tiny else 1)  # A busy CPU may take its time.
            rows += _start_part(name, args, min(limit_s, deadline - time.monotonic()), cache)
    device = next((row for row in rows if row["name"] == "device" and "kind" in row), {})
    result = {"device": device.get("kind", "unknown"), **_machine(), "seed": args.seed, "tiny": args.tiny, "rows": rows}
    result["ceilings"] = derive(rows)
    result["goals"] = judge(rows)
    out = args.out or Path("benchmarks/results") / f"gpu_{result['device'].replace(' ', '_').lower()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)
    print(f"written to {out}")
    if any("failed" in row or row.get("ok") is False for row in rows):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu_<device kind>.json")
    parser.add_argument("--minutes", type=float, default=9, help="parts that do not fit any more are left out")
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU: shows that everything runs")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="of all random data")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_part(args: argparse.Namespace) -> None:
    """The child process: rows go to standard output, one line of JSON each."""
    part = PARTS[args.part]
    getattr(importlib.import_module(f"benchmarks.gpu.{part.module}"), part.function)(Settings(args.tiny, args.seed))


def _start_part(name: str, args: argparse.Namespace, limit_s: float, cache: str) -> list[dict[str, Any]]:
    """The rows of a part, and one more that says why if it ended before its time.

    Args:
      cache: folder where XLA keeps what it compiled and which products it chose, for the parts to come.
    """
    if limit_s < 10:
        return [{"part": name, "name": "all", "left_out": "no time was left for it"}]
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--seed", str(args.seed)]
    env = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "JAX_COMPILATION_CACHE_DIR": cache}
    if args.tiny:
        command.append("--tiny")
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # Compiling is all there is.
    print(f"--- {name}, {limit_s:.0f} s at most", flush=True)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    timer = threading.Timer(limit_s, child.kill)
    timer.start()
    rows = []
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        if line.startswith('{"name"'):
            rows.append({"part": name, **json.loads(line)})
    status = child.wait()
    in_time = timer.is_alive()
    timer.cancel()
    if not in_time:
        rows.append({"part": name, "name": "rest of the part", "left_out": f"stopped after {limit_s:.0f} s"})
    elif status != 0:
        rows.append({"part": name, "name": "rest of the part", "failed": f"the process ended with {status}"})
    return rows


def _machine() -> dict[str, Any]:
    """Versions, commit and driver."""
    packages = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "numpy", *_PEERS)
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in packages if name in installed}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": _output("git", "rev-parse", "HEAD"),
        "driver": _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


_PEERS = ("torch", "transformers", "flashinfer-python", "flash-attn3-jax")


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
