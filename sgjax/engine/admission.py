"""Which requests are live, and whether there is room for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sgjax.errors import QueueFull


@dataclasses.dataclass(slots=True)
class _Live:
    """Samples that have not ended, and the tokens that the request counts as in flight until all have."""

    num_samples: int
    most_tokens: int


class LiveRequests:
    """Requests from when they are taken until they have ended. Not locked: that is the loop's.

    Args:
      max_queued: samples that may wait. max_tokens: what all requests may come to; None is no limit.
    """

    def __init__(self, *, max_queued: int, max_tokens: int | None):
        self._max_queued = max_queued
        self._max_tokens = max_tokens
        self._live: dict[str, _Live] = {}
        self._num_samples = 0
        self._num_tokens = 0

    def __contains__(self, rid: str) -> bool:
        return rid in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def check_room(self, num_samples: int, most_tokens: int, *, num_running: int) -> None:
        """Asks for a request, when `num_running` samples have left the queue.

        Raises:
          QueueFull: too many wait, or are in flight.
        """
        num_waiting = self._num_samples - num_running
        if num_waiting + num_samples > self._max_queued:
            now = f"{num_waiting} samples are waiting"
            raise QueueFull(f"{now}, and {num_samples} more exceed {self._max_queued}, the limit")
        if self._max_tokens is not None and self._num_tokens + most_tokens > self._max_tokens:
            now = f"{self._num_tokens} tokens are in flight"
            raise QueueFull(f"{now}, and {most_tokens} more exceed {self._max_tokens}, the limit")

    def add(self, rid: str, num_samples: int, most_tokens: int) -> None:
        self._live[rid] = _Live(num_samples, most_tokens)
        self._num_samples += num_samples
        self._num_tokens += most_tokens

    def end_sample(self, rid: str) -> None:
        request = self._live[rid]
        request.num_samples -= 1
        self._num_samples -= 1
        if not request.num_samples:
            self.remove(rid)

    def remove(self, rid: str) -> None:
        """The request has ended, with all of its samples."""
        request = self._live.pop(rid)
        self._num_samples -= request.num_samples
        self._num_tokens -= request.most_tokens

    def clear(self) -> None:
        for rid in self:
            self.remove(rid)
