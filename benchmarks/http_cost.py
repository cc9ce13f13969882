"""What serving over HTTP costs: throughput beside the offline engine's, and processor time of the HTTP process a token.

    python -m benchmarks.http_cost [--rounds 5] [--streams 64] [--out benchmarks/results/http_cost.json]

One run, side by side: the engine in this process and a server process take turns at the same kind of batch, `--streams`
random prompts of 128 tokens and 128 tokens out, greedy. The load generator shares the cores, and its share is part of
what HTTP is charged with here; `client_cpu_us` says how much it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sgjax
from benchmarks.load import closed_loop
from benchmarks.run_all import describe
from benchmarks.served import ServerProcess
from benchmarks.workloads import Prompts

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=64, help="requests at a time (default: %(default)s)")
    parser.add_argument("--model-path", default="embedded")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures = measure(args.model_path, args.streams, args.rounds)
    result = {**describe(), "rounds": args.rounds, "streams": args.streams, "figures": figures}
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(model_path: str, streams: int, rounds: int, **config: Any) -> dict[str, float]:
    """Medians over the rounds. Throughputs are output tokens per second, processor times microseconds a token."""
    prompts, found = Prompts(), []
    flags = [item for name, value in config.items() for item in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory(prefix="sgjax-bench-") as folder:
        log = Path(folder) / "server.log"
        with sgjax.Engine(model_path, **config) as engine:
            engine.wait_until_compiled()
            with ServerProcess(["--model-path", model_path, *flags], log) as server:
                server.wait_until_idle()
                for number in range(rounds + 1):
                    found.append(_one_round(engine, server, prompts, streams))
                    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
                    if number == 0:
                        found.clear()  # the first of each way is to warm up
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _one_round(engine: sgjax.Engine, server: ServerProcess, prompts: Prompts, streams: int) -> dict[str, float]:
    num_tokens = streams * OUTPUT_TOKENS
    params = {"max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}
    start = time.perf_counter()
    engine.generate(input_ids=prompts.draw(streams, PROMPT_TOKENS), sampling_params=params)
    offline = num_tokens / (time.perf_counter() - start)
    cpu = server.cpu_s("http_process")
    load = asyncio.run(closed_loop(server.client, prompts.draw(streams, PROMPT_TOKENS), OUTPUT_TOKENS, streams))
    http = num_tokens / load.wall_s
    return {
        "offline_tokens_per_s": offline,
        "http_tokens_per_s": http,
        "http_of_offline": http / offline,
        "http_cpu_us": (server.cpu_s("http_process") - cpu) / num_tokens * 1e6,
        "client_cpu_us": load.client_cpu * load.wall_s / num_tokens * 1e6,
    }


if __name__ == "__main__":
    main()
