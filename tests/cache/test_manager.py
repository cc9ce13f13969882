"""The cache as the scheduler uses it: above all, a page that a prefix names holds that prefix's tokens."""

from __future__ import annotations

import array
import dataclasses

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgjax.cache.manager import CacheManager, Prefix

PAGE_SIZE = 2
TOKENS = st.lists(st.integers(0, 1), max_size=20)
EXTRA_KEYS = st.sampled_from(["", "tenant"])


@dataclasses.dataclass(eq=False)
class Sequence:
    tokens: list[int]
    extra_key: str
    pages: list[int]
    prefix: Prefix

    @property
    def private(self) -> list[int]:
        return self.pages[len(self.prefix.pages) :]


class ManagerMachine(RuleBasedStateMachine):
    """Sequences come, grow, share and leave in a pool that is too small.

    `memory` plays the device: what a page holds is the namespace and all tokens up to the page's end, for that is what
    its keys and values depend on.
    """

    @initialize(num_pages=st.integers(1, 24), enabled=st.sampled_from([True, True, True, False]))
    def start(self, num_pages: int, enabled: bool):
        self.cache = CacheManager(num_pages, PAGE_SIZE, enabled)
        self.memory: dict[int, tuple[str, list[int]]] = {}
        self.sequences: list[Sequence] = []

    def compute(self, seq: Sequence, first_page: int):
        for i in range(first_page, len(seq.pages)):
            self.memory[seq.pages[i]] = seq.extra_key, seq.tokens[: (i + 1) * PAGE_SIZE]

    def assert_holds(self, pages: list[int], tokens: list[int], extra_key: str):
        for i, page in enumerate(pages):
            assert self.memory[page] == (extra_key, tokens[: (i + 1) * PAGE_SIZE])

    @rule(tokens=TOKENS, extra_key=EXTRA_KEYS, max_tokens=st.none() | st.integers(-1, 20))
    def admit(self, tokens: list[int], extra_key: str, max_tokens: int | None):
        prefix = self.cache.match(tokens, extra_key, max_tokens)
        assert prefix.num_tokens == len(prefix.pages) * PAGE_SIZE
        assert prefix.num_tokens <= max(0, len(tokens) if max_tokens is None else max_tokens)
        self.assert_holds(prefix.pages, tokens, extra_key)
        self.cache.lock(prefix)
        pages = self.allocate(-(-len(tokens) // PAGE_SIZE) - len(prefix.pages))
        if pages is None:
            self.cache.unlock(prefix)
            return
        seq = Sequence(tokens, extra_key, prefix.pages + pages, prefix)
        self.compute(seq, len(prefix.pages))
        self.sequences.append(seq)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=TOKENS)
    def decode(self, data, tokens: list[int]):
        seq = data.draw(st.sampled_from(self.sequences))
        num_full = len(seq.tokens) // PAGE_SIZE
        pages = self.allocate(-(-(len(seq.tokens) + len(tokens)) // PAGE_SIZE) - len(seq.pages))
        if pages is not None:
            seq.tokens = seq.tokens + tokens
            seq.pages = seq.pages + pages
            self.compute(seq, num_full)

    def allocate(self, num_pages: int) -> list[int] | None:
        before, available = self.cache.stats(), self.cache.num_available
        pages = self.cache.allocate(num_pages)
        if pages is None:
            assert num_pages > available
            assert self.cache.stats() == before
        else:
            assert num_pages <= available
            assert len(pages) == num_pages
        return pages

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def share(self, data):
        """The first pages of a sequence enter the tree."""
        seq = data.draw(st.sampled_from(self.sequences))
        num_pages = data.draw(st.integers(len(seq.prefix.pages), len(seq.tokens) // PAGE_SIZE))
        old = seq.prefix
        seq.prefix = self.cache.insert(seq.tokens, seq.pages[:num_pages], old, seq.extra_key)
        assert seq.prefix.locked
        if not self.cache.enabled:
            assert seq.prefix is old
            return
        assert not old.locked
        assert seq.prefix.num_tokens == num_pages * PAGE_SIZE
        assert self.cache.match(seq.tokens, seq.extra_key, num_pages * PAGE_SIZE).pages == seq.prefix.pages
        seq.pages = seq.prefix.pages + seq.pages[num_pages:]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data):
        seq = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(seq)
        self.cache.unlock(seq.prefix)
        self.cache.free(seq.private)

    @rule()
    def flush(self):
        evictable = self.cache.stats().num_evictable
        assert self.cache.flush() == evictable
        assert self.cache.stats().num_evictable == 0

    @invariant()
    def accounts_add_up(self):
        if not hasattr(self, "cache"):
            return
        private = [page for seq in self.sequences for page in seq.private]
        self.cache.check(private)
        stats = self.cache.stats()
        assert stats.num_free + stats.num_cached + len(private) == stats.num_pages
        assert stats.num_cached == stats.num_evictable + stats.num_locked
        assert stats.num_free + stats.num_evictable == self.cache.num_available
        locked = {page for seq in self.sequences for page in seq.prefix.pages}
        assert stats.num_locked == len(locked)
        for seq in self.sequences:
            self.assert_holds(seq.pages[: len(seq.tokens) // PAGE_SIZE], seq.tokens, seq.extra_key)


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def tokens_of(*pages: int) -> np.ndarray:
    """Pages of 16 equal tokens."""
    return np.repeat(np.asarray(pages, np.int32), 16)


def cached(cache: CacheManager, tokens: np.ndarray, extra_key: str = "") -> Prefix:
    """Puts the tokens into the cache as a sequence would, and leaves them unlocked."""
    prefix = cache.match(tokens, extra_key)
    cache.lock(prefix)
    pages = cache.allocate(len(tokens) // 16 - len(prefix.pages))
    assert pages is not None
    prefix = cache.insert(tokens, prefix.pages + pages, prefix, extra_key)
    cache.unlock(prefix)
    return prefix


@pytest.mark.parametrize("convert", [list, tuple, lambda t: array.array("i", t.tolist()), lambda t: t.astype(np.int64)])
def test_any_sequence_of_tokens_will_do(convert):
    cache = CacheManager(8, 16)
    tokens = tokens_of(1, 2, 3)
    pages = cached(cache, tokens).pages
    assert cache.match(convert(tokens)).pages == pages
    assert cache.match(convert(tokens), max_tokens=47).pages == pages[:2]
    assert cache.match(convert(tokens[:40])).pages == pages[:2]


def test_a_noncontiguous_array_is_read_in_order():
    cache = CacheManager(8, 16)
    pages = cached(cache, tokens_of(1, 2)).pages
    assert cache.match(np.stack([tokens_of(1, 2), tokens_of(3, 4)], axis=1)[:, 0]).pages == pages


def test_a_hit_may_end_inside_what_was_inserted_at_once():
    cache = CacheManager(8, 16)
    pages = cached(cache, tokens_of(1, 2, 3, 4)).pages
    prefix = cache.match(tokens_of(1, 2, 9))
    assert (prefix.num_tokens, prefix.pages) == (32, pages[:2])
    assert cache.stats().num_nodes == 1  # matching alone divides nothing
    cache.lock(prefix)
    assert cache.stats().num_nodes == 2
    assert (cache.stats().num_evictable, cache.flush()) == (2, 2)  # only what is used is kept
    assert cache.match(tokens_of(1, 2, 3, 4)).pages == pages[:2]
    cache.check()


def test_a_locked_edge_can_be_divided_by_others():
    cache = CacheManager(16, 16)
    cached(cache, tokens_of(1, 2, 3, 4))
    whole = cache.match(tokens_of(1, 2, 3, 4))
    cache.lock(whole)
    for fork in (3, 1, 2):
        cached(cache, np.concatenate([tokens_of(1, 2, 3, 4)[: fork * 16], tokens_of(9)]))
        cache.check()
    cache.flush()
    assert cache.match(tokens_of(1, 2, 3, 4)).pages == whole.pages
    cache.unlock(whole)
    assert cache.flush() == 4
    cache.check()


def test_the_least_recently_used_leaf_goes_first_and_a_locked_one_never():
    cache = CacheManager(9, 16)
    for last in (10, 20, 30):
        cached(cache, tokens_of(1, last, last + 1))
    assert cache.stats().num_free == 2
    used = cache.match(tokens_of(1, 10, 11))
    cache.lock(used)
    cache.unlock(used)
    held = cache.match(tokens_of(1, 30, 31))
    cache.lock(held)

    def hits() -> list[int]:
        return [cache.match(tokens_of(1, last, last + 1)).num_tokens // 16 for last in (10, 20, 30)]

    assert hits() == [3, 3, 3]
    private = cache.allocate(3)
    assert private is not None
    assert hits() == [3, 2, 3]  # from the end of the oldest leaf, and no more than is needed
    private += cache.allocate(2) or []
    assert hits() == [2, 1, 3]
    assert cache.num_available == 1
    assert cache.allocate(2) is None
    assert hits() == [2, 1, 3]
    private += cache.allocate(1) or []
    assert hits() == [1, 1, 3]
    assert cache.stats().num_evicted_pages == 4
    cache.check(private)


def test_a_page_computed_twice_is_kept_once():
    cache = CacheManager(8, 16)
    tokens = tokens_of(1, 2, 3)
    slow, fast = cache.match(tokens), cache.match(tokens)
    cache.lock(slow)
    cache.lock(fast)
    slow_pages, fast_pages = cache.allocate(3), cache.allocate(2)
    assert slow_pages is not None
    assert fast_pages is not None
    fast = cache.insert(tokens[:32], fast_pages, fast)
    slow = cache.insert(tokens, slow_pages, slow)
    assert slow.pages == fast_pages + slow_pages[2:]
    assert cache.stats().num_free == 5
    cache.check()
    cache.unlock(fast)
    assert cache.stats().num_evictable == 0
    cache.unlock(slow)
    assert cache.stats().num_evictable == 3


def test_namespaces_share_nothing():
    cache = CacheManager(8, 16)
    tokens = tokens_of(1, 2)
    plain, salted = cached(cache, tokens), cached(cache, tokens, "tenant")
    assert set(plain.pages).isdisjoint(salted.pages)
    assert cache.match(tokens, "tenant").pages == salted.pages
    assert cache.match(tokens, "other").pages == []


def test_what_was_evicted_is_remembered_for_a_while():
    evictions = []
    cache = CacheManager(4, 16, on_evicted=lambda num_pages, seconds: evictions.append((num_pages, seconds >= 0)))
    tokens = tokens_of(1, 2, 3)
    cached(cache, tokens)
    cached(cache, tokens_of(1, 2, 4))
    private = cache.allocate(2)
    assert private is not None
    assert evictions == [(2, True)]
    assert cache.match(tokens).num_tokens == 32

    def num_evicted(tokens: np.ndarray, extra_key: str = "") -> int:
        return cache.num_evicted(tokens, cache.match(tokens, extra_key), extra_key)

    assert num_evicted(tokens) == 16
    assert num_evicted(tokens, "tenant") == 0
    assert num_evicted(tokens_of(1, 2, 5)) == 0
    assert cache.num_evicted(tokens[:20], cache.match(tokens)) == 0  # the prompt ends before its cached prefix
    cache.free(private)
    for i in range(10, 30):  # more than HISTORY_POOLS pools go through
        cached(cache, tokens_of(i))
    assert num_evicted(tokens) == 0
    assert num_evicted(tokens_of(20)) == 16
    cache.flush()
    assert num_evicted(tokens_of(20)) == 0


def test_flush_keeps_what_is_locked():
    cache = CacheManager(8, 16)
    cached(cache, tokens_of(1, 2, 3))
    cached(cache, tokens_of(5, 6))
    held = cache.match(tokens_of(1, 2))
    cache.lock(held)
    assert cache.flush() == 3
    assert cache.match(tokens_of(1, 2, 3)).pages == held.pages
    assert cache.match(tokens_of(5, 6)).pages == []
    cache.check()


def test_a_disabled_cache_shares_nothing_and_takes_nothing():
    cache = CacheManager(4, 16, enabled=False)
    tokens = tokens_of(1, 2)
    prefix = cache.match(tokens)
    cache.lock(prefix)
    pages = cache.allocate(2)
    assert pages is not None
    assert cache.insert(tokens, pages, prefix) is prefix
    assert prefix.pages == []
    assert cache.match(tokens).num_tokens == 0
    cache.check(pages)
    cache.unlock(prefix)
    cache.free(pages)
    assert cache.stats().num_free == 4
    cache.check()


def test_misuse_is_refused():
    cache = CacheManager(4, 16)
    prefix = cache.match(tokens_of(1))
    with pytest.raises(RuntimeError, match="not locked"):
        cache.unlock(prefix)
    with pytest.raises(RuntimeError, match="not locked"):
        cache.insert(tokens_of(1), [0], prefix)
    cache.lock(prefix)
    with pytest.raises(RuntimeError, match="locked already"):
        cache.lock(prefix)
    with pytest.raises(ValueError, match="16 tokens and 2 pages"):
        cache.insert(tokens_of(1), [0, 1], prefix)
    with pytest.raises(ValueError, match="freed twice"):
        cache.free([0])


def test_check_says_what_is_wrong():
    cache = CacheManager(4, 16)
    page = cached(cache, tokens_of(1)).pages[0]
    private = cache.allocate(1)
    assert private is not None
    with pytest.raises(AssertionError, match=rf"pages \[{private[0]}\] .1 in all. are nowhere"):
        cache.check()
    with pytest.raises(AssertionError, match=f"page {page} is cached and private"):
        cache.check([page, *private])
    cache.lock(cache.match(tokens_of(1)))
    cache.check(private)
    cache._tree.unlock(cache._tree.match(tokens_of(1).tobytes())[0])  # behind the manager's back
    with pytest.raises(AssertionError, match="0 locks in the tree, 1 prefixes are locked"):
        cache.check(private)
