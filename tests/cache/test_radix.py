"""The radix tree against a plain model: a dictionary from every cached prefix to its last page.

A page is one byte here, so a prefix of n bytes is a prefix of n pages.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sgjax.cache.radix import Node, RadixTree

KEYS = st.text("ab", max_size=24).map(str.encode)
NAMESPACES = st.sampled_from([b"", b"x"])

type Model = dict[tuple[bytes, bytes], int]


def contents(tree: RadixTree) -> Model:
    """What the tree holds, as the model says it."""
    found: Model = {}
    stack = [(child, child.slot[:-1], b"") for child in tree.root.children.values()]
    while stack:
        node, namespace, before = stack.pop()
        for i, page in enumerate(node.pages):
            found[namespace, before + node.key[: i + 1]] = page
        stack += [(child, namespace, before + node.key) for child in node.children.values()]
    return found


class Handle(NamedTuple):
    namespace: bytes
    prefix: bytes
    node: Node

    def covers(self, key: tuple[bytes, bytes]) -> bool:
        return key[0] == self.namespace and self.prefix.startswith(key[1])


class TreeMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.tree = RadixTree(page_bytes=1, history_pages=10_000)
        self.model: Model = {}
        self.evicted: set[tuple[bytes, bytes]] = set()
        self.unlocked_at: dict[tuple[bytes, bytes], int] = {}
        self.clock = itertools.count()
        self.new_page = itertools.count()
        self.locks: list[Handle] = []
        self.hints: list[tuple[Handle, list[int]]] = []  # matched, not yet locked

    def matched(self, namespace: bytes, key: bytes) -> tuple[Handle, list[int]]:
        node, pages = self.tree.match(key, namespace)
        expected = list(
            itertools.takewhile(
                lambda page: page is not None, (self.model.get((namespace, key[: i + 1])) for i in range(len(key)))
            )
        )
        assert pages == expected
        rest = [(namespace, key[: i + 1]) in self.evicted for i in range(len(pages), len(key))]
        assert self.tree.history.num_evicted(key, node, len(pages), namespace) == len(
            list(itertools.takewhile(bool, rest))
        )
        return Handle(namespace, key[: len(pages)], node), pages

    def is_locked(self, key: tuple[bytes, bytes]) -> bool:
        return any(handle.covers(key) for handle in self.locks)

    @rule(namespace=NAMESPACES, key=KEYS)
    def match(self, namespace: bytes, key: bytes):
        self.hints.append(self.matched(namespace, key))

    @rule(namespace=NAMESPACES, key=KEYS)
    def match_and_lock(self, namespace: bytes, key: bytes):
        handle, pages = self.matched(namespace, key)
        self.locks.append(handle._replace(node=self.tree.lock(handle.node, len(pages))))

    @precondition(lambda self: self.hints)
    @rule(data=st.data())
    def lock_later(self, data):
        """Either the prefix is still there, or locking it raises: never a lock on other pages."""
        hint = data.draw(st.sampled_from(self.hints))
        self.hints.remove(hint)
        handle, pages = hint
        now = [self.model.get((handle.namespace, handle.prefix[: i + 1])) for i in range(len(pages))]
        try:
            node = self.tree.lock(handle.node, len(pages))
        except RuntimeError:
            return
        assert now == pages
        self.locks.append(handle._replace(node=node))

    @precondition(lambda self: self.locks)
    @rule(data=st.data(), suffix=KEYS)
    def insert(self, data, suffix: bytes):
        """Below a lock, which moves on."""
        old = data.draw(st.sampled_from(self.locks))
        key = old.prefix + suffix
        own = [next(self.new_page) for _ in suffix]
        held = [self.model[old.namespace, key[: i + 1]] for i in range(len(old.prefix))]
        node, pages, duplicates = self.tree.insert(key, held + own, old.node, old.namespace)
        expected_duplicates = []
        for i, page in enumerate(own, start=len(held)):
            if self.model.setdefault((old.namespace, key[: i + 1]), page) != page:
                expected_duplicates.append(page)
        assert duplicates == expected_duplicates
        assert pages == [self.model[old.namespace, key[: i + 1]] for i in range(len(key))]
        self.locks.append(Handle(old.namespace, key, node))
        self.release(old)

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data):
        self.release(data.draw(st.sampled_from(self.locks)))

    def release(self, handle: Handle):
        self.tree.unlock(handle.node)
        self.locks.remove(handle)
        now = next(self.clock)
        for i in range(len(handle.prefix)):
            key = handle.namespace, handle.prefix[: i + 1]
            if not self.is_locked(key):
                self.unlocked_at[key] = now

    @rule(num_pages=st.integers(0, 30))
    def evict(self, num_pages: int):
        evictable = {key for key in self.model if not self.is_locked(key)}
        freed = self.tree.evict(num_pages)
        gone = {key for key in evictable if self.model[key] in freed}
        assert len(gone) == len(freed) == len(set(freed)), "a page was locked, unknown or freed twice"
        assert len(freed) >= min(num_pages, len(evictable))
        assert len(freed) <= num_pages + len(self.model) // 8
        if gone and evictable - gone:  # the least recently used go
            newest = max(self.unlocked_at[key] for key in gone)
            assert newest <= min(self.unlocked_at[key] for key in evictable - gone)
        self.evicted |= gone
        for key in gone:
            del self.model[key]

    @invariant()
    def tree_equals_model(self):
        assert self.tree.check() == len(self.locks)
        assert contents(self.tree) == self.model
        assert self.tree.num_pages == len(self.model)
        assert self.tree.num_evictable == sum(not self.is_locked(key) for key in self.model)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def insert(tree: RadixTree, key: bytes, pages: list[int]) -> Node:
    """Inserts from the root and leaves it unlocked."""
    node, _, _ = tree.insert(key, pages, tree.root)
    tree.unlock(node)
    return node


@pytest.mark.parametrize("num_pages", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("num_equal", [1, 2, 6, 7, 99])
def test_bisection_finds_the_page_that_differs(num_pages, num_equal):
    tree = RadixTree(page_bytes=4)
    edge = bytes(range(200)) * 2
    insert(tree, edge, list(range(100)))
    key = bytearray(edge[: num_pages * 4])
    if num_equal < num_pages:
        key[num_equal * 4 + 3] ^= 1  # the last byte of the first page that differs
    assert tree.match(bytes(key))[1] == list(range(min(num_equal, num_pages)))


def test_a_lock_climbs_no_further_than_the_first_locked_node():
    tree = RadixTree(page_bytes=1)
    insert(tree, b"abc", [0, 1, 2])
    first, second = (tree.insert(b"abc" + tail, [0, 1, 2, page], tree.root)[0] for tail, page in ((b"d", 3), (b"e", 4)))
    shared = first.parent
    assert shared is not None
    assert shared.num_locks == 2
    again = tree.lock(first, 4)
    assert (again, first.num_locks, shared.num_locks) == (first, 2, 2)
    for node in (again, first, second):
        tree.unlock(node)
    assert tree.num_evictable == tree.num_pages == 5


def test_a_long_edge_is_evicted_from_its_end_in_few_cuts():
    tree = RadixTree(page_bytes=4)
    insert(tree, bytes(4000), list(range(1000)))
    left, cuts = 1000, 0
    while left:
        left -= len(tree.evict(1))
        cuts += 1
        assert tree.match(bytes(4000))[1] == list(range(left))
    assert cuts < 60
    assert tree.num_nodes == 0


def test_a_prefix_evicted_before_it_is_locked_is_refused():
    tree = RadixTree(page_bytes=1)
    insert(tree, b"abcd", [0, 1, 2, 3])
    whole, _ = tree.match(b"abcd")
    half, _ = tree.match(b"ab")
    assert tree.evict(1) == [3]
    with pytest.raises(RuntimeError, match="match again"):
        tree.lock(whole, 4)
    tree.unlock(tree.lock(half, 2))  # what is left of the edge still holds it
    tree.evict(4)
    with pytest.raises(RuntimeError, match="match again"):
        tree.lock(half, 2)


def test_namespaces_share_nothing_even_where_their_names_look_like_tokens():
    tree = RadixTree(page_bytes=1)
    for i, namespace in enumerate([b"", b"a", b"aa"]):
        tree.unlock(tree.insert(b"aaa", [3 * i, 3 * i + 1, 3 * i + 2], tree.root, namespace)[0])
    assert tree.num_pages == 9
    assert tree.match(b"aaa", b"a")[1] == [3, 4, 5]
    assert tree.match(b"", b"aaa") == (tree.root, [])
    assert tree.match(b"a", b"aaa") == (tree.root, [])
