"""Radix tree over whole KV pages (RadixAttention: Zheng et al., "SGLang", arXiv:2312.07104).

An edge is a run of one or more pages: their tokens as the bytes of an int32 buffer, and their page ids. Tokens are
never touched one by one: a child is found by hashing its first page, an edge is checked with one `memcmp`, and where
they differ the page is found by bisection. A prompt of 256 pages that nobody shares is one node.

Locks. A node is locked while somebody reads its pages. `num_locks` counts the holders that end exactly here plus the
children that are themselves locked, so a lock climbs only until it meets a node that was locked already, and a locked
node's ancestors are always locked.

Eviction order. Whoever uses a node locks it, so a node's last use is the moment its last lock went. The unlocked nodes
are kept in that order, and as `unlock` climbs from child to parent, every node stands behind all of its descendants.
Hence the first one is always a leaf, and the least recently used: eviction needs no clock, no heap and no search.

What people look at. A node has a number that no other ever has, counts the locks that were taken on it or below, and
knows when it was last in use; the latest evictions are remembered. Nothing is decided by these.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

from sgjax.cache.history import Branches, EvictionHistory, num_common_pages

NUM_EVICTIONS_KEPT = 64


class Node:
    """One edge and the point where it ends.

    Attributes:
      key: the tokens of the edge, `len(pages) * page_bytes` bytes.
      slot: the name under which the parent knows this node: the first page of `key`, behind the namespace at the root.
      depth: pages from the root to the end of the edge.
      num_locks: holders that end here, plus children with `num_locks` > 0.
      number: unique for ever; the lower half of a divided edge keeps it.
      num_hits: calls of `RadixTree.lock` for this node or one below.
      used_s: monotonic time when the last lock went; without meaning while there are locks.
      branches: evicted edges that left this one, at its end or further up; `history` keeps them.
    """

    __slots__ = (
        "branches",
        "children",
        "depth",
        "key",
        "num_hits",
        "num_locks",
        "number",
        "pages",
        "parent",
        "slot",
        "used_s",
    )

    def __init__(self, number: int, key: bytes, pages: list[int], parent: Node | None, slot: bytes, depth: int):
        self.number = number
        self.key = key
        self.pages = pages
        self.parent = parent
        self.slot = slot
        self.depth = depth
        self.children: dict[bytes, Node] = {}
        self.num_locks = 0
        self.num_hits = 0
        self.used_s = 0.0
        self.branches: Branches | None = None

    @property
    def start(self) -> int:
        """Pages from the root to the beginning of the edge."""
        return self.depth - len(self.pages)


class Eviction(NamedTuple):
    """The end of a node's edge, `num_pages` of it, was dropped; with `is_whole` nothing is left of the node.

    `order` counts evictions, `key` is the node's edge before, `at_s` monotonic time.
    """

    order: int
    number: int
    parent: int
    num_pages: int
    is_whole: bool
    key: bytes
    at_s: float


class RadixTree:
    """Maps token prefixes to pages. Keys are bytes, `page_bytes` of them per page; the tree owns the pages it holds.

    Args:
      history_pages: evicted pages that `history` remembers.
    """

    def __init__(self, page_bytes: int, history_pages: int = 0):
        self.page_bytes = page_bytes
        self.history = EvictionHistory(page_bytes, history_pages)
        self.num_pages = 0
        self.num_evictable = 0
        self.num_nodes = 0
        self._numbers = itertools.count()
        self.root = Node(next(self._numbers), b"", [], None, b"", 0)
        self.root.num_locks = 1  # never evicted, and where every climb stops
        self.evictions: deque[Eviction] = deque(maxlen=NUM_EVICTIONS_KEPT)
        self._num_evictions = 0
        self._unlocked: OrderedDict[Node, None] = OrderedDict()

    def match(self, key: bytes, namespace: bytes = b"") -> tuple[Node, list[int]]:
        """The longest prefix of `key` that is here, in whole pages. Changes nothing.

        Args:
          key: tokens; a page that it ends in the middle of is ignored.

        Returns:
          The deepest node that the prefix reaches, and the prefix's pages. It may end inside that node's edge: `lock`
          divides the edge when the prefix is really used.
        """
        node, pages, position = self.root, [], 0
        slot = namespace + key[: self.page_bytes] if key else b""
        while child := node.children.get(slot):
            node = child
            if not key.startswith(child.key, position):
                pages += child.pages[: num_common_pages(child.key, key, position, self.page_bytes)]
                break
            pages += child.pages
            position += len(child.key)
            slot = key[position : position + self.page_bytes]
        return node, pages

    def lock(self, node: Node, depth: int) -> Node:
        """Keeps the first `depth` pages on the way to `node` until `unlock` of the returned node.

        Args:
          node, depth: what `match` found. Later `lock`, `unlock` and `insert` do no harm; eviction may.

        Raises:
          RuntimeError: the prefix was evicted since it was matched.
        """
        while depth <= node.start and node.parent is not None:  # split since
            node = node.parent
        if depth > node.depth or (node.parent is None and node is not self.root):
            raise RuntimeError(f"a prefix of {depth} pages is locked after it was evicted: match again")
        if depth < node.depth:
            node = self._split(node, depth - node.start)
        self._lock(node)
        used: Node | None = node
        while used is not None:
            used.num_hits += 1
            used = used.parent
        return node

    def unlock(self, node: Node) -> None:
        """Gives back one lock on exactly this node."""
        now_s = time.monotonic()
        while True:
            node.num_locks -= 1
            if node.num_locks or node.parent is None:
                return
            node.used_s = now_s
            self._unlocked[node] = None
            self.num_evictable += len(node.pages)
            node = node.parent

    def insert(
        self, key: bytes, pages: list[int], node: Node, namespace: bytes = b""
    ) -> tuple[Node, list[int], list[int]]:
        """Adds the pages of `key` below `node` and locks the end of it.

        Args:
          key: tokens from the root on, `len(pages) * page_bytes` bytes.
          pages: the first `node.depth` are the tree's, the others the caller's.
          node: where to start: the root or a node that the caller holds locked and `key` passes through.

        Returns:
          The node at the end of `key`, locked; the pages of `key` in the tree; and those of the caller's pages that
          are not among them, because the tree had others for the same tokens. They stay the caller's.
        """
        size = self.page_bytes
        first, depth, num_pages = node.depth, node.depth, len(pages)
        tree_pages = pages[:depth]
        new_from = num_pages
        while depth < num_pages:
            position = depth * size
            slot = key[position : position + size] if node.parent is not None else namespace + key[:size]
            child = node.children.get(slot)
            if child is None:
                new_from = depth
                child = self._add(node, slot, key[position:], pages[depth:])
            elif not key.startswith(child.key, position):
                child = self._split(child, num_common_pages(child.key, key, position, self.page_bytes))
            node = child
            tree_pages += node.pages
            depth = node.depth
        self._lock(node)
        return node, tree_pages, pages[first:new_from]

    def evict(self, num_pages: int) -> list[int]:
        """Drops least recently used leaves, from their ends, until `num_pages` or a few more pages are free.

        Returns:
          The pages, now the caller's; fewer than asked when everything else is locked.
        """
        freed: list[int] = []
        now_s = time.monotonic()
        while len(freed) < num_pages and self._unlocked:
            node = next(iter(self._unlocked))
            # A leaf is cut to what is needed, but by an eighth at least: the key is copied at each cut, and page by
            # page a long edge would take quadratic time.
            num_cut = max(num_pages - len(freed), len(node.pages) // 8)
            is_whole = num_cut >= len(node.pages)
            self._note_eviction(node, min(num_cut, len(node.pages)), is_whole, now_s)
            self.history.remember(node, max(len(node.pages) - num_cut, 0))
            if is_whole:
                freed += node.pages
                self._remove(node)
                continue
            keep = len(node.pages) - num_cut
            freed += node.pages[keep:]
            del node.pages[keep:]
            node.key = node.key[: keep * self.page_bytes]
            node.depth -= num_cut
        self.num_pages -= len(freed)
        self.num_evictable -= len(freed)
        return freed

    def recently_used(self) -> Iterator[Node]:
        """The nodes that nobody locks, the last used one first. Cheap however many there are."""
        return reversed(self._unlocked)

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents first."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> int:
        """Asserts that links, counts, locks and the eviction order agree.

        Returns:
          The number of locks held.
        """
        order = {node: rank for rank, node in enumerate(self._unlocked)}
        num_pages = num_evictable = num_nodes = num_held = 0
        for node in (self.root, *self.nodes()):
            held = node.num_locks - sum(child.num_locks > 0 for child in node.children.values())
            assert held >= 0, f"{node.num_locks} locks on a node, fewer than its locked children"
            num_held += held
            for slot, child in node.children.items():
                assert (child.parent, child.slot) == (node, slot), "a child does not know its parent"
                assert child.start == node.depth, f"an edge starts at {child.start}, its parent ends at {node.depth}"
            if node is self.root:
                continue
            num_nodes += 1
            num_pages += len(node.pages)
            assert node.pages, "an empty edge"
            assert len(node.key) == len(node.pages) * self.page_bytes, "an edge's key and pages differ in length"
            assert node.slot.endswith(node.key[: self.page_bytes]), "a slot is not the first page of its edge"
            assert (node.num_locks == 0) == (node in order), "locked and evictable, or neither"
            if node.num_locks == 0:
                num_evictable += len(node.pages)
            for child in node.children.values():
                in_order = child not in order or order[child] < order.get(node, len(order))
                assert in_order, "a parent would be evicted before its child"
        assert num_nodes == self.num_nodes, f"{num_nodes} nodes, counted {self.num_nodes}"
        assert num_pages == self.num_pages, f"{num_pages} cached pages, counted {self.num_pages}"
        assert num_evictable == self.num_evictable, f"{num_evictable} evictable pages, counted {self.num_evictable}"
        assert len(order) <= num_nodes, "a node that was removed is still evictable"
        return num_held - 1  # the root's own

    def _lock(self, node: Node) -> None:
        while True:
            node.num_locks += 1
            if node.num_locks > 1:
                return
            del self._unlocked[node]
            self.num_evictable -= len(node.pages)
            assert node.parent is not None
            node = node.parent

    def _add(self, parent: Node, slot: bytes, key: bytes, pages: list[int]) -> Node:
        """A new leaf, for the moment unlocked: the caller locks it next."""
        node = Node(next(self._numbers), key, pages, parent, slot, parent.depth + len(pages))
        parent.children[slot] = node
        self._unlocked[node] = None
        self.num_pages += len(pages)
        self.num_evictable += len(pages)
        self.num_nodes += 1
        self.history.restore(node)
        return node

    def _split(self, node: Node, num_pages: int) -> Node:
        """Divides an edge after its first `num_pages` pages and returns the new upper node.

        `node` stays the lower one: its end does not move, so those who hold it keep their place. An unlocked upper
        half is put last in the eviction order, which would be wrong behind its parent, but the caller locks it next.
        """
        assert node.parent is not None
        cut = num_pages * self.page_bytes
        number, depth = next(self._numbers), node.start + num_pages
        upper = Node(number, node.key[:cut], node.pages[:num_pages], node.parent, node.slot, depth)
        upper.num_hits = node.num_hits
        node.parent.children[node.slot] = upper
        node.key, node.pages, node.parent = node.key[cut:], node.pages[num_pages:], upper
        node.slot = node.key[: self.page_bytes]
        upper.children[node.slot] = node
        self.history.divide(upper, node)
        if node.num_locks:
            upper.num_locks = 1
        else:
            self._unlocked[upper] = None
        self.num_nodes += 1
        return upper

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None
        assert not leaf.children, "the least recently used node has children"
        del leaf.parent.children[leaf.slot]
        del self._unlocked[leaf]
        leaf.parent = None
        self.num_nodes -= 1

    def _note_eviction(self, node: Node, num_pages: int, is_whole: bool, now_s: float) -> None:
        assert node.parent is not None
        self._num_evictions += 1
        self.evictions.append(
            Eviction(self._num_evictions, node.number, node.parent.number, num_pages, is_whole, node.key, now_s)
        )
