"""What the prefix tree had and gave up: lets a receipt say "evicted" where it would have to say "not cached"."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.cache.radix import Node


class EvictionHistory:
    """The last `capacity` evicted pages, each by a fingerprint of all tokens up to its end, 64 bits.

    A node keeps the fingerprint of its end (`Node.end`), so that long prefixes are not read again at every eviction.
    """

    def __init__(self, page_bytes: int, capacity: int):
        self._page_bytes = page_bytes
        self._capacity = capacity
        self._pages: OrderedDict[int, None] = OrderedDict()

    def remember(self, node: Node, first: int) -> None:
        """Takes in the pages of a node from its page `first` on, which are about to be evicted."""
        for page in itertools.islice(self._fingerprints(node), first, None):
            self._pages[page] = None
            self._pages.move_to_end(page)
        while len(self._pages) > self._capacity:
            self._pages.popitem(last=False)

    def num_evicted(self, key: bytes, node: Node, depth: int, namespace: bytes = b"") -> int:
        """How many pages of `key` behind its first `depth`, without a gap, are remembered.

        Args:
          node, depth: where `key` leaves the tree, as `RadixTree.match` says it.
        """
        size = self._page_bytes
        num_pages = len(key) // size
        if not self._pages or num_pages <= depth:
            return 0
        at = self._fingerprint(node, depth)
        for number in range(depth, num_pages):
            page = key[number * size : (number + 1) * size]
            at = hash((at, page if number else namespace + page))
            if at not in self._pages:
                return number - depth
        return num_pages - depth

    def clear(self) -> None:
        self._pages.clear()

    def _fingerprint(self, node: Node, depth: int) -> int:
        """Of the first `depth` pages on the way to a node."""
        while depth <= node.start and node.parent is not None:
            node = node.parent
        if depth < node.depth:
            return next(itertools.islice(self._fingerprints(node), depth - node.start - 1, None))
        return self._end_of(node)

    def _fingerprints(self, node: Node) -> Iterator[int]:
        """Of all that ends with each page of a node."""
        assert node.parent is not None
        size, at = self._page_bytes, self._end_of(node.parent)
        for number in range(len(node.pages)):
            at = hash((at, node.key[number * size : (number + 1) * size] if number else node.slot))
            yield at

    def _end_of(self, node: Node) -> int:
        path = []
        while node.end is None and node.parent is not None:
            path.append(node)
            node = node.parent
        for below in reversed(path):
            *_, below.end = self._fingerprints(below)
            node = below
        return node.end or 0
