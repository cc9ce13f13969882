"""Tokens that a program used."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Totals over requests; `+` adds two.

    Attributes:
      num_requests: sent to the backend; `select` and what `fork` puts in the cache count as one each. So does what
        `run_batch` puts there, for the run that starts first: the sum over a batch's states is all that it sent.
      prompt_tokens: sent, over all requests.
      cached_tokens: of these, found in the prefix cache.
      completion_tokens: generated, those that a grammar forced included.
    """

    num_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """The cached share of all prompt tokens, in [0, 1]; 0 when there were none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def usage_of(meta_infos: list[Mapping[str, Any]]) -> Usage:
    """What one request used; its samples (n > 1) share the prompt but each looks it up."""
    return Usage(
        1,
        sum(meta.get("prompt_tokens") or 0 for meta in meta_infos),
        sum(meta.get("cached_tokens") or 0 for meta in meta_infos),
        sum(meta.get("completion_tokens") or 0 for meta in meta_infos),
    )


class UsageCounter:
    """A running total; what a fork uses is its parent's too. Thread-safe."""

    def __init__(self, parent: UsageCounter | None = None):
        self._parent = parent
        self._lock = threading.Lock()
        self._total = Usage()

    @property
    def total(self) -> Usage:
        return self._total

    def add(self, usage: Usage) -> None:
        counter: UsageCounter | None = self
        while counter is not None:
            with counter._lock:
                counter._total += usage
            counter = counter._parent
