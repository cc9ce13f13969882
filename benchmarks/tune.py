"""Finds the sizes of a Hopper kernel that are fastest on the GPU at hand: `python -m benchmarks.kernels <op> --tune`.

For every case of `sgjax/kernels/<op>/specs.py` that is worth sizes of its own, one field of the kernel's `Tuning` after
the other is tried, from its defaults on, until none helps. What is adopted was compared with the reference before. Each
case is written when it is done, to `sgjax/kernels/tuned/<device kind>.json`, which the registry reads.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.checks import TOLERANCES
from benchmarks.gpu.measure import calls_past_the_cache, chain_s, page_tables, random_caches, relative_error
from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.tuning import Bucket, tuned_path, write_entries

NOISE = 0.02  # A candidate must be faster by more than that.


def run(op: str, device: Any, case_filter: str = "") -> None:
    """Tunes `op` for a `jax.Device`."""
    module = importlib.import_module(f"sgjax.kernels.{op}.mosaic")
    specs = importlib.import_module(f"sgjax.kernels.{op}.specs")
    if device.platform == "cpu":
        sys.exit(f"{op} is tuned by measuring on a GPU, and here is none")
    if not hasattr(module, "Tuning"):
        sys.exit(f"{op} has nothing to tune")
    cases = [case for case in specs.TUNING_CASES if case_filter in case.name]
    tune_cases(op, module, cases, specs.TUNING_VALUES, tuned_path(device.device_kind), device.device_kind)


def tune_cases(
    op: str,
    module: Any,
    cases: Sequence[AttentionCase],
    values: Mapping[str, Sequence[Any]],
    path: Path,
    device_kind: str,
) -> None:
    """Writes the best `module.Tuning` for each case's bucket to the file at `path`.

    Args:
      module: has `Tuning`, and the kernel under the name `op`.
      values: what to try of each field of `Tuning`.
    """
    about = {"device": device_kind, "jax": jax.__version__}
    for case in cases:
        bucket = Bucket.of(*case.shapes()[:2])
        kernel = getattr(module, op)
        trial = _Trial(op, kernel, case)
        best, seconds, default_seconds = search(module.Tuning(), values, trial.seconds, trial.is_right)
        measured = {"us": round(seconds * 1e6, 2), "us_by_default": round(default_seconds * 1e6, 2)}
        write_entries(path, about, op, [(bucket, best, measured)])
        print(f"{case.name:36} {default_seconds * 1e6:9.1f} us by default, {seconds * 1e6:9.1f} us with {best}")
    print(f"written to {path}")


def search[T](
    default: T, values: Mapping[str, Sequence[Any]], seconds: Callable[[T], float | None], is_right: Callable[[T], bool]
) -> tuple[T, float, float]:
    """Changes one field after the other, as long as that helps.

    Args:
      default: a frozen dataclass.
      seconds: of a candidate; None for one that does not run.
      is_right: asked of a candidate before it is adopted.

    Returns:
      The best, its seconds, and those of the default.

    Raises:
      ValueError: the default does not run or is wrong.
    """
    first = seconds(default)
    if first is None or not is_right(default):
        raise ValueError(f"{default} does not run, or is wrong")
    best, best_s, tried = default, first, {default}
    improved = True
    while improved:
        improved = False
        for field, choices in values.items():
            for choice in choices:
                candidate = dataclasses.replace(best, **{field: choice})  # type: ignore[type-var]
                if candidate in tried:
                    continue
                tried.add(candidate)
                candidate_s = seconds(candidate)
                if candidate_s is not None and candidate_s < best_s * (1 - NOISE) and is_right(candidate):
                    best, best_s, improved = candidate, candidate_s, True
    return best, best_s, first


class _Trial:
    """Runs a kernel's candidates on one case."""

    def __init__(self, op: str, kernel: Callable[..., Any], case: AttentionCase):
        self._kernel, self._case = kernel, case
        # Ragged rows, an empty and a one-token one among them, of the same sizes.
        kv_lens = (700, 0, 1, 130, 64)
        q_lens = None if case.q_lens is None else (300, 0, 1, 130, 7)
        self._small = dataclasses.replace(case, kv_lens=kv_lens, q_lens=q_lens, num_tokens=0)
        self._small_args = self._small.make(seed=1)
        reference = functools.partial(getattr(resolve("*=reference", "cpu"), op), **self._small.kwargs)
        with jax.default_matmul_precision("highest"):
            self._expected = jax.jit(reference)(*self._small_args)
        self._inputs = _device_inputs(case)

    def seconds(self, tuning: Any) -> float | None:
        kernel = functools.partial(self._kernel, **self._case.kwargs, tuning=tuning)
        return _unless_it_fails(tuning, lambda: chain_s(kernel, *self._inputs))

    def is_right(self, tuning: Any) -> bool:
        kernel = functools.partial(self._kernel, **self._small.kwargs, tuning=tuning)
        out = _unless_it_fails(tuning, lambda: jax.block_until_ready(jax.jit(kernel)(*self._small_args)))
        if out is None:
            return False
        error = relative_error(out, self._expected)
        if error <= TOLERANCES[self._case.dtype]:
            return True
        print(f"wrong by {error:.1e}: {tuning}")
        return False


def _unless_it_fails[T](tuning: Any, run: Callable[[], T]) -> T | None:
    """Too much shared memory, too many registers: whatever the compiler says of a candidate, the next may do."""
    try:
        return run()
    except Exception as error:
        print(f"does not run: {tuning}: {type(error).__name__}: {str(error).partition(chr(10))[0][:100]}")
        return None


def _device_inputs(case: AttentionCase) -> tuple[Any, ...]:
    """What `chain_s` takes, drawn on the device, for as many calls as keep the L2 cache out of it."""
    q, cache, _, table, *_ = case.shapes()
    calls = calls_past_the_cache(2 * cache.size * cache.dtype.itemsize)
    num_rows, pages_per_row = table.shape
    num_pages = num_rows * pages_per_row * calls
    caches = random_caches(0, case.num_kv_heads, num_pages, case.page_size, case.head_dim, cache.dtype)
    tables = page_tables(num_pages, calls, num_rows, pages_per_row, 0)
    rows = [jnp.asarray(case.kv_lens, jnp.int32)]
    if case.q_lens is not None:
        rows.append(jnp.cumsum(jnp.asarray((0, *case.q_lens), jnp.int32), dtype=jnp.int32))
    return q.shape, caches, tables, tuple(rows), 0
