"""The best possible hit rate: the prompts as they were sent, against a cache that is never full.

A page that was computed before, with everything before it, is found; nothing else can be. The order of independent
requests does not matter for the sum, since whichever comes first computes what they share. Two limits are of the work
and not of the cache: a prompt's last token is always computed, since its output is what is asked for; so is the token
before the first whose log-probability is asked for. All generated tokens count as computed. The last one need not have
been through the model, but it has where the next step was launched before the end was seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """One request.

    Attributes:
      logprob_start: the first prompt token whose log-probability was asked for; None when none was.
      cached: prompt tokens that the engine took from its cache.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logprob_start: int | None
    cached: int

    @property
    def reusable(self) -> int:
        """Prompt tokens that need not be computed if the cache has them."""
        last = len(self.prompt_ids) - 1
        return last if self.logprob_start is None else max(0, min(last, self.logprob_start - 1))


def best_cached(requests: Iterable[Sent], page_size: int) -> int:
    """Prompt tokens that such a cache has; `requests` in an order in which what one needs comes before it."""
    known: set[tuple[int, int]] = set()
    found = 0
    for request in requests:
        limit = request.reusable // page_size
        computed = request.prompt_ids + request.output_ids
        key, is_hit = 0, True
        for number in range(len(computed) // page_size):
            page = computed[number * page_size : (number + 1) * page_size]
            node = (number, hash((key, page)))
            is_hit = is_hit and number < limit and node in known
            found += page_size if is_hit else 0
            known.add(node)
            key = node[1]
    return found
