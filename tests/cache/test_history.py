"""Evicted edges that are forgotten in time; `test_radix.py` compares what is remembered with a model."""

from __future__ import annotations

import random

import pytest

from sgjax.cache.radix import Node, RadixTree


@pytest.mark.parametrize("capacity", [0, 1, 5, 20])
def test_no_more_than_its_capacity_is_remembered_and_nothing_that_was_not_evicted(capacity: int):
    rng = random.Random(capacity)
    tree = RadixTree(page_bytes=1, history_pages=capacity)
    prefixes: list[bytes] = []  # what each page holds, by page
    evicted: set[bytes] = set()
    held: list[Node] = []
    for _ in range(2000):
        key = bytes(rng.choices(b"ab", k=rng.randint(1, 8)))
        node, pages = tree.match(key)
        num_evicted = tree.history.num_evicted(key, node, len(pages))
        assert num_evicted <= capacity
        assert evicted.issuperset(key[: i + 1] for i in range(len(pages), len(pages) + num_evicted))
        if rng.random() < 0.6:
            locked = tree.lock(node, len(pages))
            own = range(len(prefixes), len(prefixes) + len(key) - len(pages))
            prefixes += [key[: i + 1] for i in range(len(pages), len(key))]
            held.append(tree.insert(key, [*pages, *own], locked)[0])
            tree.unlock(locked)
        if held and rng.random() < 0.7:
            tree.unlock(held.pop(rng.randrange(len(held))))
        if rng.random() < 0.3:
            evicted.update(prefixes[page] for page in tree.evict(rng.randint(1, 5)))
    tree.history.clear()
    assert all(not node.branches for node in (tree.root, *tree.nodes()))
