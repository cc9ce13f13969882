"""Times what the host does for one decode step: schedule, pack, commit, without a device.

    python -m benchmarks.host_step [--rows 256] [--out benchmarks/results/host_step.json]

Every figure is a median over steps, in microseconds. Sequences cross page borders as they do when serving, and every 32
of them share a prefix; "regroup" is a pack that finds anew who shares what, as after a sequence came or went.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.radix import git_commit, processor_name
from sgjax.cache.manager import CacheManager
from sgjax.engine.batch import SchedulerLimits
from sgjax.engine.buckets import Buckets
from sgjax.engine.packing import Packer
from sgjax.engine.scheduler import Scheduler
from sgjax.engine.sequence import Sequence
from sgjax.engine.sharing import PrefixSharing
from sgjax.types import Request, SamplingParams

PAGE_SIZE = 16
CONTEXT = 8192
SHARED_TOKENS, OWN_TOKENS = 448, 64
ROWS_PER_PREFIX = 32
REGROUP_EVERY = 8
VOCAB_SIZE = 128_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="running sequences")
    parser.add_argument("--steps", type=int, default=300, help="measured decode steps")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    figures = measure(args.rows, args.steps)
    result = {
        "machine": platform.machine(),
        "processor": processor_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": git_commit(),
        "rows": args.rows,
        "figures_us": figures,
    }
    for name, figure in figures.items():
        print(f"{name:10} {figure:8.0f} us")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(num_rows: int, num_steps: int) -> dict[str, float]:
    num_pages = num_rows * (SHARED_TOKENS + OWN_TOKENS + num_steps + 64) // PAGE_SIZE + num_rows
    limits = SchedulerLimits(max_running=num_rows, chunk_tokens=8192, prefill_rows=64)
    scheduler = Scheduler(CacheManager(num_pages, PAGE_SIZE), limits)
    buckets = Buckets.make(
        max_running=num_rows, chunk_tokens=8192, prefill_rows=64, max_pages=CONTEXT // PAGE_SIZE, min_pages=64
    )
    sharing = PrefixSharing(PAGE_SIZE, 1024)
    sizes: dict[str, Any] = dict(max_running=num_rows, num_pages=num_pages, page_size=PAGE_SIZE, vocab_size=VOCAB_SIZE)
    packer = Packer(buckets, sharing=sharing, **sizes)
    rng = np.random.default_rng(0)
    prefixes = rng.integers(0, VOCAB_SIZE, (-(-num_rows // ROWS_PER_PREFIX), SHARED_TOKENS)).tolist()
    for i in range(num_rows):
        request = Request(
            rid=str(i),
            # Lengths differ, so that page borders are crossed by some rows at every step.
            input_ids=tuple(
                prefixes[i % len(prefixes)] + rng.integers(0, VOCAB_SIZE, OWN_TOKENS + i % PAGE_SIZE).tolist()
            ),
            sampling=SamplingParams(max_new_tokens=num_steps + 32, seed=i),
        )
        scheduler.add(Sequence(request, 0, seed=i, stop_ids=frozenset({2}), context_length=CONTEXT, arrival_s=0.0))
    while scheduler.waiting or not all(seq.prefilled for seq in scheduler.running):
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.commit(batch, [5] * len(batch.rows))
    times: dict[str, list[float]] = {"schedule": [], "pack": [], "commit": [], "regroup": []}
    tokens = [7] * num_rows
    for step in range(num_steps):
        regroups = step % REGROUP_EVERY == 0
        if regroups:
            sharing.forget()
        start = time.perf_counter()
        batch = scheduler.schedule()
        scheduled = time.perf_counter()
        assert batch is not None
        assert len(batch.rows) == num_rows
        assert packer.pack(batch).shared is not None
        packed = time.perf_counter()
        scheduler.commit(batch, tokens)
        end = time.perf_counter()
        names = "schedule", "regroup" if regroups else "pack", "commit"
        for name, seconds in zip(names, (scheduled - start, packed - scheduled, end - packed), strict=True):
            times[name].append(seconds * 1e6)
    figures = {name: statistics.median(values) for name, values in times.items()}
    return {**figures, "together": sum(figures[name] for name in ("schedule", "pack", "commit"))}


if __name__ == "__main__":
    main()
