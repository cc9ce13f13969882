"""The prefix cache as the scheduler sees it: pages, and which tokens they hold.

Every page is in exactly one place: free, in the tree, or private to one sequence. A sequence's life:

  prefix = cache.match(prompt, max_tokens=len(prompt) - 1)  # what is already there; a hint until it is locked
  cache.lock(prefix)                                        # now it stays
  pages = cache.allocate(...)                               # private pages; may evict what nobody locked
  prefix = cache.insert(tokens, pages, prefix)              # full pages become the tree's, the lock moves on
  cache.unlock(prefix); cache.free(private)                 # the end: cached pages stay until they are evicted

Contract:
- `match` changes nothing. What it returns is valid until the next `allocate` or `flush`, which may evict it; locking an
  evicted prefix raises. Lock what you use, the empty prefix too, and before you allocate.
- A `Prefix` is locked once and unlocked once, or moved on by `insert`. Only while it is locked may its pages be read.
- `insert` may find that the tree has pages for tokens that the sequence computed as well (another sequence was faster).
  It frees the sequence's copies: from then on use the pages of the returned prefix, not your own.
- The device runs steps in launch order. So pages may be inserted as soon as the step that fills them is launched, and
  pages that any call here frees may be handed out at once: whoever gets them writes in a later step.

Not thread-safe: one thread schedules.
"""

from __future__ import annotations

import array
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sgjax.cache.pages import PageAllocator
from sgjax.cache.radix import Node, RadixTree
from sgjax.cache.snapshot import TreeSnapshot, take_snapshot

TOKEN_BYTES = 4
HISTORY_POOLS = 4  # evicted pages that are remembered, in pools


class Prefix:
    """A cached prefix of some token sequence, in whole pages. Made by `CacheManager` only.

    Attributes:
      num_tokens: its length.
      pages: its pages in order; the caller may read the list, not change it.
      locked: whether the pages are kept.
      node: where it ends in the tree, opaque.
    """

    __slots__ = ("locked", "node", "num_tokens", "pages")

    def __init__(self, num_tokens: int, pages: list[int], node: Node, locked: bool = False):
        self.num_tokens = num_tokens
        self.pages = pages
        self.node = node
        self.locked = locked

    def __repr__(self) -> str:
        return f"Prefix(num_tokens={self.num_tokens}, pages={self.pages}, locked={self.locked})"


@dataclasses.dataclass(frozen=True, slots=True)
class CacheStats:
    """Pages by place. Hits are counted by the scheduler, which knows what an admission is.

    Attributes:
      num_cached: pages in the tree: `num_evictable` + `num_locked`. The others that are not free are private.
      num_evicted_pages: since the start, to make room; those that `flush` dropped are not counted.
    """

    num_pages: int
    num_free: int
    num_cached: int
    num_evictable: int
    num_locked: int
    num_nodes: int
    num_evicted_pages: int


class CacheManager:
    """Page allocator and radix tree behind one door; the module's docstring is the contract.

    Args:
      num_pages: size of the KV pool.
      page_size: tokens per page.
      enabled: False shares nothing: every match is empty, and `insert` leaves pages with their sequence.
      on_evicted: told the number of pages and the seconds of each eviction that made room.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        enabled: bool = True,
        on_evicted: Callable[[int, float], None] = lambda num_pages, seconds: None,
    ):
        self.num_pages = num_pages
        self.page_size = page_size
        self.enabled = enabled
        self._pages = PageAllocator(num_pages)
        self._tree = RadixTree(page_size * TOKEN_BYTES, history_pages=HISTORY_POOLS * num_pages)
        self._on_evicted = on_evicted
        self._num_locks = 0
        self._num_evicted_pages = 0
        self._namespace_key = secrets.token_bytes(16)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out now."""
        return self._pages.num_free + self._tree.num_evictable

    def match(
        self, token_ids: Sequence[int] | np.ndarray, extra_key: str = "", max_tokens: int | None = None
    ) -> Prefix:
        """The longest cached prefix, in whole pages and of at most `max_tokens` tokens. Not locked, changes nothing.

        Args:
          token_ids: a one-dimensional int32 array (fast) or any sequence of ints.
          extra_key: the namespace to look in.
        """
        limit = len(token_ids) if max_tokens is None else min(len(token_ids), max_tokens)
        if not self.enabled or limit < self.page_size:
            return Prefix(0, [], self._tree.root)
        node, pages = self._tree.match(_key(token_ids, limit), extra_key.encode())
        return Prefix(len(pages) * self.page_size, pages, node)

    def lock(self, prefix: Prefix) -> None:
        """Keeps a matched prefix until `unlock` or `insert`.

        Raises:
          RuntimeError: it is locked already, or was evicted since it was matched.
        """
        if prefix.locked:
            raise RuntimeError(f"{prefix} is locked already")
        prefix.node = self._tree.lock(prefix.node, len(prefix.pages))
        prefix.locked = True
        self._num_locks += 1

    def unlock(self, prefix: Prefix) -> None:
        """Gives the lock back: the pages stay cached until they are evicted, the prefix must not be used again.

        Raises:
          RuntimeError: it is not locked.
        """
        if not prefix.locked:
            raise RuntimeError(f"{prefix} is not locked")
        self._tree.unlock(prefix.node)
        prefix.locked = False
        self._num_locks -= 1

    def allocate(self, num_pages: int) -> list[int] | None:
        """Private pages, with undefined contents; least recently used leaves are evicted where needed.

        Returns:
          The pages, the caller's until `free` or `insert`; None, with nothing changed, when too few can be had.
        """
        num_missing = num_pages - self._pages.num_free
        if num_missing > self._tree.num_evictable:
            return None
        if num_missing > 0:
            self._make_room(num_missing)
        return self._pages.allocate(num_pages)

    def free(self, pages: Sequence[int]) -> None:
        """Takes private pages back. Raises ValueError for a page that is free already."""
        self._pages.free(pages)

    def insert(
        self, token_ids: Sequence[int] | np.ndarray, pages: list[int], old: Prefix, extra_key: str = ""
    ) -> Prefix:
        """Gives the tree the pages of a sequence, so that others can share them.

        Args:
          token_ids: the tokens that the pages hold, or longer; `len(pages) * page_size` of them are used.
          pages: the sequence's pages. The first `len(old.pages)` are the tree's, held through `old`; the others are
            private and become the tree's, except copies of what the tree had already, which are freed.
          old: the sequence's locked prefix. Its lock moves to the result.
          extra_key: the namespace, the same at every call for one sequence.

        Returns:
          The prefix of all these tokens, locked, with the pages to use from now on. When the cache is disabled: `old`,
          and the pages stay private.
        """
        if not old.locked:
            raise RuntimeError(f"insert below {old}, which is not locked")
        if not self.enabled:
            return old
        num_tokens = len(pages) * self.page_size
        if len(pages) < len(old.pages) or len(token_ids) < num_tokens:
            raise ValueError(f"{len(token_ids)} tokens and {len(pages)} pages below a prefix of {len(old.pages)} pages")
        node, tree_pages, duplicates = self._tree.insert(
            _key(token_ids, num_tokens), pages, old.node, extra_key.encode()
        )
        self._tree.unlock(old.node)
        old.locked = False
        self._pages.free(duplicates)
        return Prefix(num_tokens, tree_pages, node, locked=True)

    def flush(self) -> int:
        """Drops whatever is not locked, and the memory of what was evicted. Returns the number of pages freed."""
        num_freed = self._evict(self._tree.num_evictable)
        self._tree.history.clear()
        return num_freed

    def num_evicted(self, token_ids: Sequence[int] | np.ndarray, prefix: Prefix, extra_key: str = "") -> int:
        """How many tokens behind `prefix`, the longest that is cached, were cached once and had to make room.

        In whole pages without a gap. What was evicted long ago is forgotten, and counts as never cached.
        """
        key = _key(token_ids, len(token_ids))
        return self._tree.history.num_evicted(key, prefix.node, len(prefix.pages), extra_key.encode()) * self.page_size

    def stats(self) -> CacheStats:
        num_cached, num_evictable = self._tree.num_pages, self._tree.num_evictable
        return CacheStats(
            num_pages=self.num_pages,
            num_free=self._pages.num_free,
            num_cached=num_cached,
            num_evictable=num_evictable,
            num_locked=num_cached - num_evictable,
            num_nodes=self._tree.num_nodes,
            num_evicted_pages=self._num_evicted_pages,
        )

    def snapshot(self, held: Iterable[Prefix], max_nodes: int) -> TreeSnapshot:
        """The tree for people to look at, of any size at the cost of `max_nodes`.

        Args:
          held: every locked prefix, the most important one first.
        """
        return take_snapshot(self._tree, [prefix.node for prefix in held], max_nodes, self._namespace_key)

    def check(self, private_pages: Iterable[int] = ()) -> None:
        """Asserts that every page is in one place: free, cached, or in `private_pages`; and that locks add up.

        Walks everything: for tests and idle moments. Raises AssertionError, which says what is wrong.
        """
        num_held = self._tree.check()
        assert num_held == self._num_locks, f"{num_held} locks in the tree, {self._num_locks} prefixes are locked"
        place: dict[int, str] = {}
        cached = (page for node in self._tree.nodes() for page in node.pages)
        for name, pages in (("free", self._pages.free_pages()), ("cached", cached), ("private", private_pages)):
            for page in pages:
                assert 0 <= page < self.num_pages, f"{name} page {page} is outside the pool of {self.num_pages}"
                assert page not in place, f"page {page} is {place[page]} and {name}"
                place[page] = name
        lost = [page for page in range(self.num_pages) if page not in place]
        assert not lost, f"pages {lost[:10]} ({len(lost)} in all) are nowhere: neither free, cached nor private"

    def _make_room(self, num_pages: int) -> None:
        started_s = time.perf_counter()
        num_evicted = self._evict(num_pages)
        self._num_evicted_pages += num_evicted
        self._on_evicted(num_evicted, time.perf_counter() - started_s)

    def _evict(self, num_pages: int) -> int:
        freed = self._tree.evict(num_pages)
        self._pages.free(freed)
        return len(freed)


def _key(token_ids: Sequence[int] | np.ndarray, num_tokens: int) -> bytes:
    """The first `num_tokens` tokens as the bytes of an int32 buffer."""
    if not isinstance(token_ids, (np.ndarray, array.array)):
        token_ids = array.array("i", token_ids[:num_tokens])
    return np.asarray(token_ids, np.int32)[:num_tokens].tobytes()
