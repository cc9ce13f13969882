"""Compact JSON with and without jump-forward, side by side: how much is forced, and what that saves."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any

import sgjax
from benchmarks.structured.schemas import CHARACTER


def measure(row_counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """Greedy characters for different people, all rows of a count at once; the two engines take turns."""
    found = []
    with contextlib.ExitStack() as stack:
        engines = {
            name: stack.enter_context(sgjax.Engine("embedded", disable_jump_forward=off, max_total_tokens=40_000))
            for name, off in (("jump", False), ("plain", True))
        }
        for engine in engines.values():
            engine.wait_until_compiled()
        for num_rows in row_counts:
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            outputs: dict[str, list[sgjax.GenerateOutput]] = {}
            for _ in range(repeats):
                for name, engine in engines.items():
                    engine.flush_cache()
                    start = time.perf_counter()
                    outputs[name] = _characters(engine, num_rows)
                    seconds[name].append(time.perf_counter() - start)
            found.append(_figures(num_rows, seconds, outputs))
    return found


def _characters(engine: sgjax.Engine, num_rows: int) -> list[sgjax.GenerateOutput]:
    chats = [[{"role": "user", "content": f"Describe person {i} as JSON."}] for i in range(num_rows)]
    return engine.generate(
        messages=chats, sampling_params={"json_schema": CHARACTER, "temperature": 0, "max_new_tokens": 300}
    )


def _figures(
    num_rows: int, seconds: dict[str, list[float]], outputs: dict[str, list[sgjax.GenerateOutput]]
) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    num_tokens = sum(len(output.output_ids) for output in outputs["jump"])
    receipts = [output.receipt for output in outputs["jump"] if output.receipt is not None]
    pairs = zip(outputs["jump"], outputs["plain"], strict=True)
    return {
        "rows": num_rows,
        "jump_s": median["jump"],
        "plain_s": median["plain"],
        "speed_up": median["plain"] / median["jump"],
        "output_tokens": num_tokens,
        "forced_share": sum(receipt.forced_tokens for receipt in receipts) / num_tokens,
        "same_texts": sum(a.text == b.text for a, b in pairs) / num_rows,
    }
