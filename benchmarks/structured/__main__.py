"""What structured output costs and gains, on the embedded model.

    python -m benchmarks.structured jump      compact JSON with and without jump-forward
    python -m benchmarks.structured overlap   64 rows with a schema against 64 free ones, by the time of a step
    python -m benchmarks.structured fill      200 varied schemas: do the answers parse and validate?

Figures are medians of interleaved runs. `--out` writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sgjax
from benchmarks.radix import git_commit, processor_name
from benchmarks.structured import fill, jump, overlap
from sgjax.models.checkpoint.embedded import fetch_embedded
from sgjax.text import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("jump", "overlap", "fill"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {"jump": _jump, "overlap": _overlap, "fill": _fill}[args.what](args.repeats)
    for row in figures:
        print(
            "  ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    result = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_average_before": load,
        "versions": {name: version(name) for name in ("jax", "llguidance", "numpy")},
        "commit": git_commit(),
        "repeats": args.repeats,
        "figures": figures,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _jump(repeats: int) -> list[dict[str, Any]]:
    return jump.measure([1, 4, 16, 64], repeats)


def _overlap(repeats: int) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(fetch_embedded())
    return overlap.measure(tokenizer, num_rows=64, step_ms=[5, 10, 15, 20, 30], num_steps=200, repeats=repeats)


def _fill(repeats: int) -> list[dict[str, Any]]:
    with sgjax.Engine("embedded") as engine:
        return [fill.fill(engine, 200)]


if __name__ == "__main__":
    main()
