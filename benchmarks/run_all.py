"""Measures the embedded model's serving on this machine and writes the README's table.

    python -m benchmarks.run_all [--runs 3] [--out benchmarks/results/cpu_serving.json] [-- flags of sgjax serve]

Starts servers of its own: one with an empty compile cache (a cold start), on which the workloads run once everything
is compiled, then others with that cache (warm starts). The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.served import ServerProcess
from benchmarks.workloads import WORKLOADS, measure

ROOT = Path(__file__).parents[1]
TABLE_START, TABLE_END = "<!-- benchmark table -->", "<!-- end -->"

# Rows of the table: text, then how its figure is had from the results.
_ROWS = (
    ("one request, 32 in / 128 out: time per token", "{one_request[ms_per_token]:.1f} ms"),
    ("16 at a time, 256 in / 64 out: output", "{sixteen_at_a_time[output_tokens_per_s]:,.0f} tok/s"),
    ("64 at a time, 128 in / 128 out: output", "{sixty_four_at_a_time[output_tokens_per_s]:,.0f} tok/s"),
    ("one 1024-token prompt: time to first token", "{long_prompt[ttft_ms]:.0f} ms"),
    (
        "4 shared 1024-token prefixes, 64 asks of 64 tokens, 32 out, 16 at a time: all tokens",
        "{shared_prefixes[total_tokens_per_s]:,.0f} tok/s",
    ),
    ("same: prefix tokens found in the cache, of the most possible", "{shared_prefixes[hit_rate_of_best]:.1%}"),
    ("start to first answer, compile cache empty", "{start[cold_s]:.1f} s"),
    ("start to first answer, compile cache warm", "{start[warm_s]:.1f} s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each figure (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="and write nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu_serving.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("serve_flags", nargs="*", help="after --: flags for sgjax serve")
    args = parser.parse_args()
    whole = args.only == list(WORKLOADS)
    if whole:
        with_table(args.readme.read_text(encoding="utf-8"), "")  # fails now rather than after minutes
    with tempfile.TemporaryDirectory(prefix="sgjax-bench-") as folder:
        figures = run(args.only, args.runs, Path(folder), args.serve_flags)
    result = {**describe(), "runs": args.runs, "serve_flags": args.serve_flags, "figures": figures}
    print(json.dumps(result, indent=1))
    if whole:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        readme = args.readme.read_text(encoding="utf-8")
        args.readme.write_text(with_table(readme, table(result)), encoding="utf-8")


def run(only: list[str], runs: int, folder: Path, serve_flags: list[str]) -> dict[str, Any]:
    """All figures: of the workloads by name, and of starting."""
    flags = ["--compile-cache-dir", str(folder / "compiled"), *serve_flags]
    log = folder / "server.log"
    try:
        with ServerProcess(flags, log) as server:
            cold = server.first_answer_s
            _report(f"cold start: {cold:.1f} s to the first answer")
            compiling = cold + server.wait_until_idle()
            _report(f"at rest after {compiling:.0f} s")
            figures: dict[str, Any] = dict(measure(server.client, only, runs, _report))
        warm = []
        for _ in range(runs):
            with ServerProcess(flags, log) as server:
                warm.append(server.first_answer_s)
                _report(f"warm start: {warm[-1]:.1f} s to the first answer")
    except BaseException:
        _report(log.read_text(errors="replace")[-4000:] if log.exists() else "no server log")
        raise
    figures["start"] = {"cold_s": cold, "all_compiled_s": compiling, "warm_s": statistics.median(warm)}
    return figures


def describe() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    packages = ("sgjax", "jax", "jaxlib", "flax", "numpy", "tokenizers")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "sgjax", "server"], capture_output=True, text=True, cwd=ROOT
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(result: Mapping[str, Any]) -> str:
    """The README's table in Markdown, with what it was measured on."""
    figures = result["figures"]
    rows = [f"| {text} | {form.format(**figures)} |" for text, form in _ROWS]
    lines = [
        "| workload | sgjax |",
        "|---|---:|",
        *rows,
        "",
        f"{result['processor']}, {result['cores']} cores, {result['memory_gib']} GiB, no GPU; jax "
        f"{result['versions']['jax']}, commit {result['commit']}, {result['date']}; medians of {result['runs']} runs.",
    ]
    return "\n".join(lines)


def with_table(text: str, new: str) -> str:
    """`text` with the table between its two markers replaced.

    Raises:
      ValueError: a marker is missing.
    """
    head, start, rest = text.partition(TABLE_START)
    _, end, tail = rest.partition(TABLE_END)
    if not start or not end:
        raise ValueError(f"the README has no {TABLE_START} and {TABLE_END} around its table")
    return f"{head}{start}\n{new}\n{end}{tail}"


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
