"""The radix tree as people look at it: plain values of a bounded number of its nodes."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence

from sgjax.cache.radix import Node, RadixTree

NUM_FIRST_TOKENS = 24
_TOKEN_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class TreeNode:
    """One edge of the tree.

    Attributes:
      id: the same in every snapshot, and never another node's. An edge that is divided keeps it for its lower half.
      parent: id of a node that comes before this one in the snapshot, or 0, the root.
      num_users: requests that are reading these tokens now.
      num_hits: requests, so far, that found them here instead of computing them.
      idle_s: since they were last in use; 0 while they are.
      num_children: nodes directly below, in the tree; in the snapshot there may be fewer.
      namespace: of a child of the root, a name without meaning that equal namespaces share, "" for the ordinary one.
        What clients call it (a cache salt may be a secret) is not told.
      first_tokens: ids at the beginning of the edge.
    """

    id: int
    parent: int
    num_tokens: int
    num_pages: int
    num_users: int
    num_hits: int
    idle_s: float
    num_children: int
    namespace: str
    first_tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class EvictedPart:
    """The last `num_tokens` of a node were dropped, to make room or by a flush; `is_whole`: the node is gone.

    Attributes:
      order: larger for later ones, and never the same.
      node, parent: ids. first_tokens: those of the node before.
    """

    order: int
    node: int
    parent: int
    num_tokens: int
    is_whole: bool
    age_s: float
    first_tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TreeSnapshot:
    """Some of the tree's nodes, parents first, and what was evicted lately, oldest first.

    Attributes:
      num_nodes, num_tokens: of the whole tree. num_roots: nodes directly below the root, in the tree.
    """

    num_nodes: int
    num_tokens: int
    num_roots: int
    nodes: tuple[TreeNode, ...]
    evicted: tuple[EvictedPart, ...]


def take_snapshot(tree: RadixTree, held: Sequence[Node], max_nodes: int, namespace_key: bytes) -> TreeSnapshot:
    """Chooses what is in use, then what was used last, each with all that is above it.

    The cost is bounded by `max_nodes`, the length of `held` and one path, not by the size of the tree.

    Args:
      held: a node for each holder of a lock, where it ends.
      namespace_key: keeps namespaces from being guessed by their names.
    """
    now_s = time.monotonic()
    chosen = _choose(tree, held, max_nodes)
    num_users = _count_users(held)
    page_tokens = tree.page_bytes // _TOKEN_BYTES
    nodes = [
        TreeNode(
            id=node.number,
            parent=0 if node.parent is None else node.parent.number,
            num_tokens=len(node.pages) * page_tokens,
            num_pages=len(node.pages),
            num_users=num_users[node],
            num_hits=node.num_hits,
            idle_s=0.0 if node.num_locks else round(now_s - node.used_s, 3),
            num_children=len(node.children),
            namespace=_namespace(tree, node, namespace_key),
            first_tokens=_first_tokens(node.key),
        )
        for node in chosen
    ]
    evicted = [
        EvictedPart(
            order=one.order,
            node=one.number,
            parent=one.parent,
            num_tokens=one.num_pages * page_tokens,
            is_whole=one.is_whole,
            age_s=round(now_s - one.at_s, 3),
            first_tokens=_first_tokens(one.key),
        )
        for one in tree.evictions
    ]
    return TreeSnapshot(
        num_nodes=tree.num_nodes,
        num_tokens=tree.num_pages * page_tokens,
        num_roots=len(tree.root.children),
        nodes=tuple(nodes),
        evicted=tuple(evicted),
    )


def _choose(tree: RadixTree, held: Sequence[Node], max_nodes: int) -> list[Node]:
    """At most `max_nodes` nodes, every one after its parent."""
    chosen: dict[Node, None] = {}
    for candidate in itertools.chain(held, tree.recently_used()):
        room = max_nodes - len(chosen)
        if room <= 0:
            break
        path = list(itertools.takewhile(lambda node: node not in chosen, _way_up(candidate)))
        chosen.update(dict.fromkeys(path[: -room - 1 : -1]))
    return list(chosen)


def _count_users(held: Sequence[Node]) -> collections.Counter[Node]:
    """How many holders read each node: those that end there or below. A node's parent has at least as many."""
    return collections.Counter(node for end in held for node in _way_up(end))


def _way_up(node: Node) -> Iterator[Node]:
    """A node and all above it but the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def _namespace(tree: RadixTree, node: Node, key: bytes) -> str:
    name = node.slot[: -tree.page_bytes] if node.parent is tree.root else b""
    return hashlib.blake2b(name, key=key, digest_size=3).hexdigest() if name else ""


def _first_tokens(key: bytes) -> tuple[int, ...]:
    return tuple(memoryview(key)[: NUM_FIRST_TOKENS * _TOKEN_BYTES].cast("i"))
