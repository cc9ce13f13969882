"""What people see of the tree: whole when it is small, closed upwards when it is cut, and true either way."""

from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgjax.cache.manager import CacheManager, Prefix
from sgjax.cache.radix import NUM_EVICTIONS_KEPT
from sgjax.cache.snapshot import NUM_FIRST_TOKENS, TreeSnapshot

PAGE_SIZE = 2


def use(cache: CacheManager, tokens: list[int], extra_key: str = "") -> Prefix:
    """What a request does that computes these tokens; its prefix is still locked."""
    prefix = cache.match(tokens, extra_key)
    cache.lock(prefix)
    pages = cache.allocate(len(tokens) // PAGE_SIZE - len(prefix.pages))
    assert pages is not None
    return cache.insert(tokens, prefix.pages + pages, prefix, extra_key)


def used(cache: CacheManager, tokens: list[int], extra_key: str = "") -> None:
    cache.unlock(use(cache, tokens, extra_key))


def assert_closed(snapshot: TreeSnapshot) -> None:
    """Every parent comes first, and no node twice."""
    known = {0}
    for node in snapshot.nodes:
        assert node.parent in known
        assert node.id not in known
        known.add(node.id)


@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=12), st.sampled_from(["", "a"])), max_size=12
    ),
    num_held=st.integers(0, 12),
    num_evicted=st.integers(0, 20),
)
def test_the_whole_tree(prompts: list[tuple[list[int], str]], num_held: int, num_evicted: int):
    cache = CacheManager(100, PAGE_SIZE)
    prompts = [(tokens[: len(tokens) // PAGE_SIZE * PAGE_SIZE], key) for tokens, key in prompts]
    held = [use(cache, *prompt) for prompt in prompts]
    for prefix in held[num_held:]:
        cache.unlock(prefix)
    held = held[:num_held]
    if (pages := cache.allocate(cache.stats().num_free + num_evicted)) is not None:
        cache.free(pages)
    snapshot, stats = cache.snapshot(held, 1000), cache.stats()

    assert_closed(snapshot)
    assert len(snapshot.nodes) == snapshot.num_nodes == stats.num_nodes
    assert sum(node.num_tokens for node in snapshot.nodes) == snapshot.num_tokens == stats.num_cached * PAGE_SIZE
    locked = [node for node in snapshot.nodes if node.num_users]
    assert sum(node.num_pages for node in locked) == stats.num_locked
    assert sum(node.num_users for node in snapshot.nodes if node.parent == 0) == len(held)
    children = collections.Counter(node.parent for node in snapshot.nodes)
    assert children[0] == snapshot.num_roots
    assert all(node.num_children == children[node.id] for node in snapshot.nodes)
    assert sum(part.num_tokens for part in snapshot.evicted) == stats.num_evicted_pages * PAGE_SIZE
    ids = {node.id for node in snapshot.nodes}
    assert all(part.is_whole == (part.node not in ids) for part in {one.node: one for one in snapshot.evicted}.values())


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), max_size=20), st.integers(0, 8), st.integers(0, 3)
)
def test_a_part_of_the_tree(prompts: list[list[int]], max_nodes: int, num_held: int):
    cache = CacheManager(200, PAGE_SIZE)
    held = [use(cache, tokens[: len(tokens) // PAGE_SIZE * PAGE_SIZE]) for tokens in prompts]
    for prefix in held[num_held:]:
        cache.unlock(prefix)
    whole, part = cache.snapshot(held[:num_held], 1000), cache.snapshot(held[:num_held], max_nodes)
    assert_closed(part)
    assert len(part.nodes) == min(max_nodes, whole.num_nodes)
    assert (part.num_nodes, part.num_tokens, part.num_roots) == (whole.num_nodes, whole.num_tokens, whole.num_roots)
    in_use = {node.id for node in whole.nodes if node.num_users}
    shown = {node.id for node in part.nodes}
    assert in_use <= shown or shown <= in_use, "idle nodes are shown in place of some that are in use"


def test_what_was_used_last_is_shown():
    cache = CacheManager(100, PAGE_SIZE)
    for i in range(20):
        used(cache, [i, i])
    used(cache, [3, 3])
    assert [node.first_tokens for node in cache.snapshot([], 3).nodes] == [(3, 3), (19, 19), (18, 18)]


def test_a_path_longer_than_the_limit_is_shown_from_its_top():
    cache = CacheManager(100, PAGE_SIZE)
    for length in range(2, 21, 2):
        used(cache, [7] * length)
    snapshot = cache.snapshot([], 4)
    assert_closed(snapshot)
    assert [node.num_tokens for node in snapshot.nodes] == [2, 2, 2, 2]


def test_hits_users_and_idle_time():
    cache = CacheManager(100, PAGE_SIZE)
    used(cache, [1, 1, 2, 2])
    first, second = use(cache, [1, 1, 2, 2]), use(cache, [1, 1, 3, 3])
    top, *below = cache.snapshot([first, second], 10).nodes
    assert (top.num_users, top.num_hits, top.idle_s) == (2, 2, 0.0)
    assert sorted((node.first_tokens, node.num_users, node.num_hits) for node in below) == [
        ((2, 2), 1, 1),
        ((3, 3), 1, 0),
    ]
    cache.unlock(first)
    cache.unlock(second)
    assert all(node.num_users == 0 and node.idle_s >= 0 for node in cache.snapshot([], 10).nodes)


def test_an_id_stays_and_never_comes_back():
    cache = CacheManager(100, PAGE_SIZE)
    used(cache, [1, 1, 2, 2])
    (before,) = cache.snapshot([], 10).nodes
    used(cache, [1, 1, 3, 3])
    ends = {node.first_tokens: node.id for node in cache.snapshot([], 10).nodes}
    assert ends[2, 2] == before.id
    cache.flush()
    used(cache, [1, 1, 2, 2])
    (after,) = cache.snapshot([], 10).nodes
    assert after.id not in ends.values()


def test_evictions_are_remembered_for_a_while():
    cache = CacheManager(10, PAGE_SIZE)
    used(cache, [1] * 20)
    (node,) = cache.snapshot([], 10).nodes
    for _ in range(3):
        pages = cache.allocate(2)
        assert pages is not None
        cache.free(pages)
        used(cache, [1] * 20)
    evicted = cache.snapshot([], 10).evicted
    assert (evicted[0].node, evicted[0].is_whole, evicted[0].num_tokens) == (node.id, False, 4)
    assert all(earlier.order < later.order for earlier, later in itertools.pairwise(evicted))
    for i in range(100):
        used(cache, [2, i] * 5)
    assert len(cache.snapshot([], 10).evicted) == NUM_EVICTIONS_KEPT


def test_namespaces_are_told_apart_but_not_told():
    cache = CacheManager(100, PAGE_SIZE)
    for key in ("", "secret salt", "other"):
        used(cache, [1, 1], key)
    used(cache, [2, 2], "secret salt")
    names = {node.first_tokens[0]: set() for node in cache.snapshot([], 10).nodes}
    for node in cache.snapshot([], 10).nodes:
        names[node.first_tokens[0]].add(node.namespace)
    assert len(names[1]) == 3
    assert "" in names[1]
    assert names[2] < names[1]
    assert not any("secret" in name or "salt" in name for name in names[1])


def test_only_the_first_tokens_are_told():
    cache = CacheManager(100, PAGE_SIZE)
    used(cache, list(range(100)))
    (node,) = cache.snapshot([], 1).nodes
    assert node.first_tokens == tuple(range(NUM_FIRST_TOKENS))


@pytest.mark.parametrize("max_nodes", [0, 5])
def test_a_cache_that_shares_nothing(max_nodes: int):
    cache = CacheManager(10, PAGE_SIZE, enabled=False)
    prefix = cache.match([1, 1])
    cache.lock(prefix)
    assert cache.snapshot([prefix], max_nodes) == TreeSnapshot(0, 0, 0, (), ())
