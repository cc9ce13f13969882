"""The serving workloads of the README's table, against any server with OpenAI's completions route.

    python -m benchmarks.workloads --base-url http://127.0.0.1:30000 [--only one_request ...] [--runs 3]

Prompts are random token ids, fresh in every run, so that no cache of an earlier run can help; generation is greedy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np
import uvloop

from benchmarks.load import Client, Load, closed_loop

Figures = dict[str, float]
VOCABULARY = range(1000, 32000)  # ordinary tokens in every vocabulary in use


class Prompts:
    """Draws random prompts."""

    def __init__(self, seed: int | None = None):
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int, num_tokens: int) -> list[list[int]]:
        return self._rng.integers(VOCABULARY.start, VOCABULARY.stop, (count, num_tokens)).tolist()

    def shuffled[T](self, items: Sequence[T]) -> list[T]:
        return [items[i] for i in self._rng.permutation(len(items))]


async def one_request(client: Client, prompts: Prompts) -> Figures:
    """One request, 32 tokens in, 128 out: time per token after the first."""
    load = await closed_loop(client, prompts.draw(1, 32), max_tokens=128, concurrency=1)
    return {"ms_per_token": load.answers[0].tpot_s * 1e3, **_common(load)}


async def sixteen_at_a_time(client: Client, prompts: Prompts) -> Figures:
    """64 requests, 16 at a time, 256 tokens in, 64 out: output tokens per second."""
    return _common(await closed_loop(client, prompts.draw(64, 256), max_tokens=64, concurrency=16))


async def sixty_four_at_a_time(client: Client, prompts: Prompts) -> Figures:
    """128 requests, 64 at a time, 128 tokens in, 128 out: output tokens per second."""
    return _common(await closed_loop(client, prompts.draw(128, 128), max_tokens=128, concurrency=64))


async def long_prompt(client: Client, prompts: Prompts) -> Figures:
    """Five prompts of 1024 tokens, one after another: time to first token."""
    return _common(await closed_loop(client, prompts.draw(5, 1024), max_tokens=4, concurrency=1))


async def shared_prefixes(client: Client, prompts: Prompts) -> Figures:
    """4 prefixes of 1024 tokens, 64 asks of 64 tokens in random order, 32 out, 16 at a time: all tokens per second.

    At best only each prefix's first ask computes the prefix; `hit_rate_of_best` is relative to that.
    """
    num_prefixes, prefix_len, num_asks = 4, 1024, 64
    prefixes, asks = prompts.draw(num_prefixes, prefix_len), prompts.draw(num_asks, 64)
    bodies = prompts.shuffled([prefixes[i % num_prefixes] + ask for i, ask in enumerate(asks)])
    load = await closed_loop(client, bodies, max_tokens=32, concurrency=16)
    cached = sum(answer.cached_tokens for answer in load.answers)
    return {
        "hit_rate": cached / sum(map(len, bodies)),
        "hit_rate_of_best": cached / ((num_asks - num_prefixes) * prefix_len),
        **_common(load),
    }


def _common(load: Load) -> Figures:
    """Figures of any workload. Times to first token and gaps are over all requests."""
    answers = load.answers
    output = sum(answer.completion_tokens for answer in answers)
    gaps = sorted(gap for answer in answers for gap in answer.gaps_s)
    return {
        "output_tokens_per_s": output / load.wall_s,
        "total_tokens_per_s": (output + sum(answer.prompt_tokens for answer in answers)) / load.wall_s,
        "ttft_ms": statistics.median(answer.ttft_s for answer in answers) * 1e3,
        "ttft_max_ms": max(answer.ttft_s for answer in answers) * 1e3,
        "gap_p99_ms": gaps[len(gaps) * 99 // 100] * 1e3 if gaps else 0.0,
        "wall_s": load.wall_s,
        "client_cpu": load.client_cpu,
    }


WORKLOADS = {
    workload.__name__: workload
    for workload in (one_request, sixteen_at_a_time, sixty_four_at_a_time, long_prompt, shared_prefixes)
}


def measure(client: Client, names: Sequence[str], runs: int, report: Callable[[str], None]) -> dict[str, Figures]:
    """Medians of `runs` runs of each workload, interleaved, after one that is not counted."""
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for run in range(runs + 1):
        for name in names:
            figures = uvloop.run(WORKLOADS[name](client, Prompts()))
            if run:
                found[name].append(figures)
            report(f"{'warm-up' if not run else f'run {run}'} {name}: {_short(figures)}")
    return {
        name: {key: statistics.median(figures[key] for figures in of_name) for key in of_name[0]}
        for name, of_name in found.items()
    }


def _short(figures: Figures) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:30000", help="without /v1 (default: %(default)s)")
    parser.add_argument("--model", default="default", help="model name in the requests")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each workload (default: %(default)s)")
    args = parser.parse_args()
    client = Client(base_url=args.base_url, model=args.model)
    figures = measure(client, args.only, args.runs, lambda line: print(line, file=sys.stderr))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
