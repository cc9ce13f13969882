"""What the prefix tree had and gave up: lets a receipt say "evicted" where it would have to say "not cached"."""

from __future__ import annotations

from collections import OrderedDict

START = 0
"""The fingerprint of an empty prefix."""


def fingerprint(before: int, page: bytes) -> int:
    """Of a prefix that ends with `page`, behind a prefix with the fingerprint `before`; 64 bits."""
    return hash((before, page))


class EvictionHistory:
    """The last `capacity` evicted pages, each by the fingerprint of all tokens up to its end."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._pages: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, page: int) -> bool:
        return page in self._pages

    def add(self, page: int) -> None:
        """Remembers a page by its fingerprint, and forgets the one that was evicted longest ago when it is full."""
        self._pages[page] = None
        self._pages.move_to_end(page)
        if len(self._pages) > self._capacity:
            self._pages.popitem(last=False)

    def clear(self) -> None:
        self._pages.clear()
