"""How many tokens the live requests of this process may come to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sgjax.types import QueueFull, Request, RequestError


class TokensInFlight:
    """Counts prompts, and outputs as long as they may become, and refuses what exceeds a limit. Thread-safe.

    Args:
      limit: None is none.
    """

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._num_tokens = 0
        self._lock = threading.Lock()

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def take(self, requests: Sequence[Request], context_length: int) -> int:
        """Counts requests that begin. Their number of tokens is to be given back when they have ended.

        Raises:
          QueueFull: others must end first. RequestError: these are too many even alone.
        """
        count = sum(_most_tokens(request, context_length) for request in requests)
        with self._lock:
            if self._limit is not None and count > self._limit:
                message = (
                    f"with the prompt, {count} tokens may be needed; the server has {self._limit} in flight at most"
                )
                raise RequestError("max_new_tokens", message)
            if self._limit is not None and self._num_tokens + count > self._limit:
                raise QueueFull(
                    f"{self._num_tokens} tokens are in flight, and {count} more exceed {self._limit}, the limit"
                )
            self._num_tokens += count
        return count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._num_tokens -= count


def _most_tokens(request: Request, context_length: int) -> int:
    num_prompt, most = len(request.input_ids), request.sampling.max_new_tokens
    if most is None:
        most = max(0, context_length - num_prompt)
    return num_prompt + most * request.sampling.n
