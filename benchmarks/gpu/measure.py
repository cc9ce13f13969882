"""What the parts share: clocks, relative errors, and the rows that they report."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Settings(NamedTuple):
    """How a part runs.

    Attributes:
      tiny: shapes for a CPU, which show that everything runs and nothing else.
      seed: of all random data; new for every run.
    """

    tiny: bool
    seed: int

    @property
    def implementations(self) -> tuple[str, ...]:
        """What can be timed here. The Hopper kernels come last: a fault of theirs ends the process."""
        return ("xla",) if jax.default_backend() == "cpu" else ("xla", "mosaic")


def report(name: str, make: Callable[..., dict[str, Any]], *args: Any) -> None:
    """Prints the row that `make(*args)` gives as one line of JSON; if it raises, a row that says so, and goes on.

    Fields with a meaning to the table: `seconds`, `bytes` and `flops` of one call; `error` and `tolerance`.
    """
    start = time.perf_counter()
    try:
        row = make(*args)
    except Exception as error:
        traceback.print_exc()
        row = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    took_s = round(time.perf_counter() - start, 1)
    print(json.dumps({"name": name, **row, "took_s": took_s}), flush=True)


def median_s(call: Callable[[int], Any], calls: int, repeats: int = 7) -> float:
    """Seconds of one call: the median over repeats, in each of which `calls` are queued before anything is waited for.

    Args:
      call: given the number of the call, so that it can rotate its inputs; returns arrays of its last result.
    """
    for i in range(2):
        jax.block_until_ready(call(i))
    samples = []
    for repeat in range(repeats):
        start = time.perf_counter()
        results = [call(repeat * calls + i) for i in range(calls)]
        jax.block_until_ready(results[-1])
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


def relative_error(out: Any, reference: Any) -> float:
    """||out - reference|| / ||reference|| in float32 over all leaves; NaN in either gives NaN."""
    difference = squares = 0.0
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(reference), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        difference += float(jnp.sum((a - b) ** 2))
        squares += float(jnp.sum(b**2))
    if squares == 0:
        return difference  # Nothing but padding: the output has to be zero too.
    return (difference / squares) ** 0.5


def random_array(seed: int, shape: Sequence[int], dtype: Any = jnp.bfloat16) -> jax.Array:
    """Normal, made on the device."""
    return _normal(seed, tuple(shape), jnp.dtype(dtype).name)


@jax.jit(static_argnames=("shape", "dtype"))
def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def random_cache(seed: int, num_kv_heads: int, num_pages: int, page_size: int, head_dim: int) -> jax.Array:
    """(K, N, page, H) of random pages, up to 1024 of which repeat: drawing a pool of gigabytes takes as much again."""
    distinct = min(num_pages, 1024)
    pages = random_array(seed, (num_kv_heads, distinct, page_size, head_dim))
    return jnp.tile(pages, (1, -(-num_pages // distinct), 1, 1))[:, :num_pages]
