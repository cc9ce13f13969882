"""Times the prefix cache on the host: match, insert, eviction in a tree of 100,000 nodes.

    python -m benchmarks.radix [--out benchmarks/results/radix.json]

The tree holds 1,000 prefixes of 512 tokens with 100 suffixes of 64 tokens each, pages of 16. Every measured prompt has
4,096 tokens; of a new one 512 are shared with the tree. Prompts differ from one another, so that nothing is warm in the
processor's caches but what a server would have warm too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sgjax.cache.manager import CacheManager, Prefix

PAGE_SIZE = 16
NUM_PREFIXES, PREFIX_TOKENS = 1000, 512
NUM_SUFFIXES, SUFFIX_TOKENS = 100, 64
PROMPT_TOKENS = 4096
NUM_PAGES = 600_000
VOCAB_SIZE = 128_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500, help="prompts per figure")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    tracemalloc.start()
    cache, prefixes = build_tree(rng)
    tree_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    num_nodes = cache.stats().num_nodes
    figures = measure(cache, prefixes, args.repeats, rng)
    cache.check()
    result: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": processor_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": git_commit(),
        "page_size": PAGE_SIZE,
        "num_nodes": num_nodes,
        "tree_bytes_per_node": round(tree_bytes / num_nodes),
        "figures": figures,
    }
    for name, figure in figures.items():
        print(f"{name:32} {figure['median']:8.1f} us   p99 {figure['p99']:8.1f} us")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def build_tree(rng: np.random.Generator) -> tuple[CacheManager, list[np.ndarray]]:
    """The workload's tree, and its prefixes."""
    cache = CacheManager(NUM_PAGES, PAGE_SIZE)
    prefixes = [random_tokens(rng, PREFIX_TOKENS) for _ in range(NUM_PREFIXES)]
    for prefix in prefixes:
        for _ in range(NUM_SUFFIXES):
            run_prompt(cache, np.concatenate([prefix, random_tokens(rng, SUFFIX_TOKENS)]))
    return cache, prefixes


def measure(
    cache: CacheManager, prefixes: list[np.ndarray], repeats: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Microseconds per call, median and 99th percentile."""
    picks = rng.integers(len(prefixes), size=repeats)
    prompts = [np.concatenate([prefixes[i], random_tokens(rng, PROMPT_TOKENS - PREFIX_TOKENS)]) for i in picks]
    times: dict[str, list[float]] = {}

    def timed[T](name: str, function: Callable[..., T], *args: Any) -> T:
        start = time.perf_counter_ns()
        result = function(*args)
        times.setdefault(name, []).append((time.perf_counter_ns() - start) / 1e3)
        return result

    for tokens in prompts:
        prefix = timed("match", cache.match, tokens)
        assert prefix.num_tokens == PREFIX_TOKENS
        timed("lock", cache.lock, prefix)
        pages = timed("allocate_224_pages", take, cache, tokens, prefix)
        prefix = timed("insert", cache.insert, tokens, pages, prefix)
        timed("unlock", cache.unlock, prefix)
    times["match_and_insert"] = [sum(pair) for pair in zip(times["match"], times["insert"], strict=True)]
    for tokens in prompts:
        assert timed("match_full_hit", cache.match, tokens).num_tokens == PROMPT_TOKENS
    for tokens in prompts:  # half of the new part is shared: the edge is compared by bisection and divided
        half = tokens.copy()
        half[PROMPT_TOKENS // 2 :] += 1
        prefix = timed("match_inside_an_edge", cache.match, half)
        assert prefix.num_tokens == PROMPT_TOKENS // 2
        timed("lock_and_divide", cache.lock, prefix)
        cache.unlock(prefix)
    idle = cache.allocate(cache.stats().num_free)
    assert idle is not None
    for _ in range(repeats):  # from leaves of four pages, the oldest in the tree
        pages = timed("allocate_224_pages_evicting", cache.allocate, 224)
        assert pages is not None
        idle += pages
    cache.free(idle)
    return {name: summary(values) for name, values in times.items()}


def run_prompt(cache: CacheManager, tokens: np.ndarray) -> None:
    prefix = cache.match(tokens)
    cache.lock(prefix)
    cache.unlock(cache.insert(tokens, take(cache, tokens, prefix), prefix))


def take(cache: CacheManager, tokens: np.ndarray, prefix: Prefix) -> list[int]:
    pages = cache.allocate(len(tokens) // PAGE_SIZE - len(prefix.pages))
    assert pages is not None, "the pool is too small for the workload"
    return prefix.pages + pages


def random_tokens(rng: np.random.Generator, num_tokens: int) -> np.ndarray:
    return rng.integers(VOCAB_SIZE, size=num_tokens, dtype=np.int32)


def summary(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": round(statistics.median(ordered), 2), "p99": round(ordered[len(ordered) * 99 // 100], 2)}


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def git_commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
