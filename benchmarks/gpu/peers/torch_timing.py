"""A clock for PyTorch: calls in one CUDA graph, as the parts that run jax have them in one program."""

# pyright: reportMissingImports=false

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIB = 1 << 20


def normal(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16).to(dtype)


def num_sets(num_bytes: int) -> int:
    """How many sets of inputs to rotate so that none is in the L2 cache when its turn comes again."""
    return 1 if DEVICE == "cpu" else min(32, max(1, -(-256 * MIB // num_bytes)))


def median_s(call: Callable[[int], Any], calls: int, repeats: int = 7) -> float:
    """Seconds of one of `calls` calls that run one behind the other; the median over repeats.

    Args:
      call: given its number, so that it can rotate its inputs.
    """
    for i in range(2):
        call(i)
    if DEVICE == "cpu":
        return statistics.median(_on_host(call, calls) for _ in range(repeats))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    graph.replay()
    samples = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(samples)


def _on_host(call: Callable[[int], Any], calls: int) -> float:
    started = time.perf_counter()
    for i in range(calls):
        call(i)
    return (time.perf_counter() - started) / calls
