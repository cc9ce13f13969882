"""What the prefix tree had and gave up: lets a receipt say "evicted" where it would have to say "not cached"."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.cache.radix import Node

Branches = dict[tuple[int, bytes], "EvictedEdge"]
"""Evicted edges by where they left an edge, in pages from the root, and by their first page, as in `Node.slot`."""


class EvictedEdge:
    """The tokens of an edge, or of its end, after its pages were given to others.

    Attributes:
      key: as of a `Node`.
      branches: evicted edges that left this one, at its end or further up.
      siblings, name: the branches that hold this one, and under what.
    """

    __slots__ = ("branches", "key", "name", "siblings")

    def __init__(self, key: bytes, branches: Branches | None, siblings: Branches, name: tuple[int, bytes]):
        self.key = key
        self.branches = branches
        self.siblings = siblings
        self.name = name
        siblings[name] = self


class EvictionHistory:
    """The evicted edges, until `capacity` pages have followed them.

    They hang where they hung, on the tree's nodes (`Node.branches`) and on each other. So an eviction costs a few
    steps for each edge, however long that is, and tokens are compared only when somebody asks or comes back.
    """

    def __init__(self, page_bytes: int, capacity: int):
        self._page_bytes = page_bytes
        self._capacity = capacity
        self._num_pages = 0
        self._edges: OrderedDict[EvictedEdge, None] = OrderedDict()  # the oldest first

    def remember(self, node: Node, first: int) -> None:
        """Takes in the pages of a node from its page `first` on, which are about to be evicted."""
        key, branches, start = node.key, node.branches, node.depth - len(node.pages) + first
        if first:
            key = key[first * self._page_bytes :]
            slot, holder = key[: self._page_bytes], node
            node.branches, branches = _divided(branches or {}, start)
        else:
            assert node.parent is not None
            slot, holder = node.slot, node.parent
        siblings = holder.branches
        if siblings is None:
            siblings = holder.branches = {}
        self._edges[EvictedEdge(key, branches, siblings, (start, slot))] = None
        self._num_pages += len(node.pages) - first
        while self._num_pages > self._capacity:
            edge, _ = self._edges.popitem(last=False)
            self._num_pages -= len(edge.key) // self._page_bytes
            del edge.siblings[edge.name]

    def divide(self, upper: Node, lower: Node) -> None:
        """The tree has divided an edge, whose branches `lower` still has."""
        if lower.branches:
            upper.branches, lower.branches = _divided(lower.branches, upper.depth)

    def restore(self, node: Node) -> None:
        """A node has been added, perhaps over evicted edges: what it has again is forgotten, the rest hangs on it."""
        assert node.parent is not None
        if not node.parent.branches:
            return
        size, at = self._page_bytes, node.start
        edge = node.parent.branches.pop((at, node.slot), None)
        if edge is None:
            return
        node.branches = {}
        while edge is not None:
            offset = (at - node.start) * size
            num_common = num_common_pages(edge.key, node.key[offset : offset + len(edge.key)], 0, size)
            at += num_common
            self._num_pages -= num_common
            here, beyond = _divided(edge.branches or {}, at)
            _hang(here, node.branches)
            edge.key = edge.key[num_common * size :]
            if edge.key:
                edge.branches, edge.siblings, edge.name = beyond, node.branches, (at, edge.key[:size])
                node.branches[edge.name] = edge
            else:
                del self._edges[edge]
            offset = (at - node.start) * size
            edge = node.branches.pop((at, node.key[offset : offset + size]), None)

    def num_evicted(self, key: bytes, node: Node, depth: int, namespace: bytes = b"") -> int:
        """How many pages of `key` behind its first `depth`, without a gap, are remembered.

        Args:
          node, depth: where `key` leaves the tree, as `RadixTree.match` says it.
        """
        size = self._page_bytes
        while depth <= node.start and node.parent is not None:  # split since
            node = node.parent
        branches, at = node.branches, depth
        while branches:
            page = key[at * size : (at + 1) * size]
            edge = branches.get((at, page if at else namespace + page))
            if edge is None or len(page) < size:
                break
            at += num_common_pages(edge.key, key, at * size, size)
            branches = edge.branches
        return at - depth

    def clear(self) -> None:
        for edge in self._edges:
            edge.siblings.clear()
        self._edges.clear()
        self._num_pages = 0


def num_common_pages(edge: bytes, key: bytes, position: int, size: int) -> int:
    """Whole pages that an edge shares with `key` from `position` on; the first is known to be one of them."""
    if key.startswith(edge, position):
        return len(edge) // size
    low, high = 1, len(edge) // size
    while low < high:
        middle = (low + high + 1) // 2
        if key.startswith(edge[low * size : middle * size], position + low * size):
            low = middle
        else:
            high = middle - 1
    return low


def _divided(branches: Branches, at: int) -> tuple[Branches, Branches]:
    """Those that left the edge up to `at` pages from the root, and those behind."""
    if all(start > at for start, _ in branches):
        return {}, branches
    upper, lower = {}, {}
    for name, edge in branches.items():
        edge.siblings = upper if name[0] <= at else lower
        edge.siblings[name] = edge
    return upper, lower


def _hang(branches: Branches, on: Branches) -> None:
    for name, edge in branches.items():
        edge.siblings = on
        on[name] = edge
