"""What a workload is."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import sgjax as sgl
from benchmarks.programs.plain import Plain


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of a workload.

    Attributes:
      programs: how many runs. shared: sentences of what all runs begin with. own: sentences of each run's own text.
    """

    programs: int
    shared: int
    own: int


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program, its arguments, and the same work for the `openai` client.

    Attributes:
      draw: the arguments of each run.
      answer: what a run has found; compared between runs, so it has to be a plain value.
      plain: one run by API calls; the answer in the same form.
      threads: how many runs at a time, of either.
    """

    name: str
    program: sgl.SglFunction
    draw: Callable[[random.Random, Size], list[dict[str, Any]]]
    answer: Callable[[sgl.ProgramState], Any]
    plain: Callable[..., Any]
    full: Size
    small: Size
    threads: int = 8

    def batch(self, *, small: bool, seed: int = 0) -> list[dict[str, Any]]:
        return self.draw(random.Random(f"{self.name} {seed}"), self.small if small else self.full)

    def run(self, backend: Any, batch: list[dict[str, Any]], **options: Any) -> list[Any]:
        """The answers of a batch, by the program.

        Raises:
          ProgramError: a run failed.
        """
        states = self.program.run_batch(batch, backend=backend, num_threads=self.threads, temperature=0, **options)
        return [self.answer(state) for state in states]

    def run_plain(self, client: Plain, batch: list[dict[str, Any]]) -> list[Any]:
        """The answers of a batch, by API calls."""
        return client.map(lambda arguments: self.plain(client, **arguments), batch, self.threads)
