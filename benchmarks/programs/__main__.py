"""Measures the workloads, prints a table and, unless --small, puts the figures into the results file.

Figures of other workloads stay there, so that the workloads can be measured at several times; each says when.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sgjax
from benchmarks.programs import WORKLOADS, in_process, over_http
from benchmarks.programs.workload import Workload
from benchmarks.run_all import ROOT, describe
from benchmarks.served import ServerProcess

CONTEXT_LENGTH, POOL_TOKENS = 2048, 65536
SERVE_FLAGS = ["--context-length", str(CONTEXT_LENGTH), "--max-total-tokens", str(POOL_TOKENS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="only these")
    parser.add_argument("--runs", type=int, default=2, help="counted runs of each figure (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="short prompts, few programs: to see that it works")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/programs.json")
    args = parser.parse_args()
    workloads = [WORKLOADS[name] for name in args.workload]
    measured = {**describe(), "runs": args.runs, "load_average_before": os.getloadavg()}
    figures = measure_in_process(workloads, args.runs, args.small)
    for name, served in measure_over_http(workloads, args.runs, args.small).items():
        figures[name] |= {**served, "measured": {**measured, "load_average_after": os.getloadavg()}}
    print(table(figures))
    if not args.small:
        kept = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        merged = {name: ({**kept, **figures})[name] for name in WORKLOADS if name in figures or name in kept}
        args.out.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def measure_in_process(workloads: Sequence[Workload], runs: int, small: bool) -> dict[str, dict[str, Any]]:
    """Times with the cache on and off, in turn; hit rates; how many answers agree."""
    settings: Any = {"context_length": CONTEXT_LENGTH, "max_total_tokens": POOL_TOKENS}
    figures = {}
    with sgjax.Engine(**settings) as on, sgjax.Engine(**settings, disable_radix_cache=True) as off:
        for engine in (on, off):
            engine.wait_until_compiled()
        for workload in workloads:
            in_process.run(workload, on, workload.batch(small=True, seed=1))  # grammars, threads and caches of the host
            batch = workload.batch(small=small)
            cached, uncached = _in_turn(
                runs,
                lambda w=workload, b=batch: in_process.run(w, on, b),
                lambda w=workload, b=batch: in_process.run(w, off, b),
            )
            figures[workload.name] = {
                "programs": len(batch),
                **cached[-1].counts(on.config.page_size),
                "cached_s": [run.wall_s for run in cached],
                "uncached_s": [run.wall_s for run in uncached],
                "speedup": _median_s(uncached) / _median_s(cached),
                "same_answers": _agreement(cached[-1].answers, uncached[-1].answers),
            }
            _report(workload.name, figures[workload.name])
    return figures


def measure_over_http(workloads: Sequence[Workload], runs: int, small: bool) -> dict[str, dict[str, Any]]:
    """Times of the programs and of the same work by API calls, in turn, on one server."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="sgjax-bench-") as folder:
        log = Path(folder) / "server.log"
        try:
            with ServerProcess(SERVE_FLAGS, log) as server:
                server.wait_until_idle()
                for workload in workloads:
                    figures[workload.name] = _served(workload, server.client.base_url, runs, small)
                    _report(workload.name, figures[workload.name])
        except BaseException:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
    return figures


def _served(workload: Workload, url: str, runs: int, small: bool) -> dict[str, Any]:
    over_http.run_program(workload, url, workload.batch(small=True, seed=1))
    batch = workload.batch(small=small)
    program, whole, plain = _in_turn(
        runs,
        lambda: over_http.run_program(workload, url, batch),
        lambda: over_http.run_program(workload, url, batch, on_server=True),
        lambda: over_http.run_plain(workload, url, batch),
    )
    return {
        "program_s": [run.wall_s for run in program],
        "program_on_server_s": [run.wall_s for run in whole],
        "plain_s": [run.wall_s for run in plain],
        "plain_counts": plain[-1].counts,
        "gain_over_plain": _median_s(plain) / _median_s(program),
        "gain_over_plain_on_server": _median_s(plain) / _median_s(whole),
        "same_answers_as_plain": _agreement(program[-1].answers, plain[-1].answers),
    }


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| workload | hit rate | best, pages | best, tokens | cache off / on | plain calls / program | on the server |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, figure in figures.items():
        rates = (figure[key] for key in ("hit_rate", "best_hit_rate_pages", "best_hit_rate_tokens"))
        gains = (figure[key] for key in ("speedup", "gain_over_plain", "gain_over_plain_on_server"))
        cells = [name, *(f"{rate:.1%}" for rate in rates), *(f"{gain:.2f}x" for gain in gains)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _in_turn[T](runs: int, *works: Callable[[], T]) -> list[list[T]]:
    """Each work's results, one of each after the other, so that what else the machine does meets all alike."""
    found: list[list[T]] = [[] for _ in works]
    for _ in range(runs):
        for work, results in zip(works, found, strict=True):
            results.append(work())
    return found


def _median_s(runs: Sequence[Any]) -> float:
    return statistics.median(run.wall_s for run in runs)


def _agreement(left: Sequence[Any], right: Sequence[Any]) -> float:
    """The share of equal answers."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def _report(name: str, figure: dict[str, Any]) -> None:
    values = {key: round(value, 3) if isinstance(value, float) else value for key, value in figure.items()}
    print(f"{name}: {values}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
