"""A workload on a server: the program, and the same work by the `openai` client."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import sgjax as sgl
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Workload


@dataclasses.dataclass(frozen=True, slots=True)
class ServedRun:
    """One run of a whole workload.

    Attributes:
      counts: calls and tokens, of a client that counts them.
    """

    answers: list[Any]
    wall_s: float
    counts: dict[str, int] | None = None


def run_program(workload: Workload, url: str, batch: list[dict[str, Any]], **options: Any) -> ServedRun:
    """The program, step by step over HTTP or, with `on_server=True`, whole."""
    backend = sgl.RuntimeEndpoint(url)
    backend.flush_cache()
    return _timed(lambda: workload.run(backend, batch, **options))


def run_plain(workload: Workload, url: str, batch: list[dict[str, Any]]) -> ServedRun:
    """The same work by API calls."""
    sgl.RuntimeEndpoint(url).flush_cache()
    client = Plain(url)
    try:
        done = _timed(lambda: workload.run_plain(client, batch))
    finally:
        client.close()
    return dataclasses.replace(done, counts=client.counts())


def _timed(work: Callable[[], list[Any]]) -> ServedRun:
    start = time.perf_counter()
    answers = work()
    return ServedRun(answers, time.perf_counter() - start)
