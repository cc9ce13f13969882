"""Which rows of a decode step share a prefix, so that attention reads it once for all of them (cascade attention).

The radix tree gives sequences with a common prefix the same pages, so rows that begin with the same page ids share what
those pages hold. numpy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sgjax.engine.batch import Row
from sgjax.engine.sequence import Sequence

# By platform: keys that a step must save by reading each shared prefix once, below which the second attention call and
# the join cost more. On a GPU they are some 8 us a layer, in which an H100 reads about 6,000 of Llama-3.1-8B's keys;
# that is reckoned, not measured.
CASCADE_MIN_SAVED_TOKENS = {"cpu": 1024, "gpu": 8192}


@dataclasses.dataclass(slots=True)
class SharedPrefixValues:
    """numpy twin of `sgjax.layers.batch.SharedPrefixes`."""

    starts: np.ndarray
    lens: np.ndarray


def max_groups(num_rows: int) -> int:
    """Groups that a decode step of so many rows has room for."""
    return max(1, num_rows // 4)


class PrefixSharing:
    """Finds the groups of a decode step, and keeps them while the same sequences decode.

    Args:
      min_saved_tokens: see `CASCADE_MIN_SAVED_TOKENS`.
    """

    def __init__(self, page_size: int, min_saved_tokens: int):
        self._page_size = page_size
        self._min_saved_pages = -(-min_saved_tokens // page_size)
        self._members: list[Sequence] = []
        self._order: list[int] = []
        self._groups: list[Group] = []

    def forget(self) -> None:
        """Must be called when the pages of a sequence were rewritten."""
        self._members = []

    def arrange(self, rows: list[Row], page_table: np.ndarray, num_rows: int) -> SharedPrefixValues | None:
        """Sorts `rows` in place so that a group's are neighbours. None, and no change, where too little is shared.

        Args:
          page_table: (max_running + 1, P), by slot. num_rows: S of the step.
        """
        members = [row.seq for row in rows]
        if members != self._members:
            self._members = members
            self._find(rows, page_table, max_groups(num_rows))
        if not self._groups:
            return None
        rows[:] = [rows[i] for i in self._order]
        starts, lens = [0], []
        for group in self._groups:
            starts.append(starts[-1] + len(group.rows))
            lens.append(group.num_pages * self._page_size)
        padding = max_groups(num_rows) - len(lens)
        return SharedPrefixValues(
            np.array(starts + starts[-1:] * padding, np.int32), np.array(lens + [0] * padding, np.int32)
        )

    def _find(self, rows: list[Row], page_table: np.ndarray, most_groups: int) -> None:
        """Sets the groups, and the order of rows that puts their members first and side by side."""
        self._groups = []
        slots = [row.seq.slot for row in rows]
        if len(set(page_table[slots, 0].tolist())) == len(rows):
            return
        # The page that takes the row's newest token is its own, and ends what it can share.
        full = np.array([row.start for row in rows]) // self._page_size
        tables = page_table[slots, : full.max() + 1]
        tables[np.arange(tables.shape[1]) >= full[:, None]] = -1
        keys = [table.tobytes() for table in tables]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        differs = tables[order[1:]] != tables[order[:-1]]
        common = np.minimum(np.where(differs.any(1), differs.argmax(1), tables.shape[1]), full[order[1:]])
        groups = sorted(best_groups(common.tolist()), key=lambda group: group.saved_pages, reverse=True)[:most_groups]
        if sum(group.saved_pages for group in groups) < self._min_saved_pages:
            return
        self._groups = groups
        grouped = [order[i] for group in groups for i in group.rows]
        self._order = grouped + sorted(set(order).difference(grouped))


@dataclasses.dataclass(slots=True)
class Group:
    """Rows whose first `num_pages` pages are the same."""

    rows: list[int]
    num_pages: int

    @property
    def saved_pages(self) -> int:
        return (len(self.rows) - 1) * self.num_pages


def best_groups(common: list[int]) -> list[Group]:
    """Divides rows into groups that save much reading, when each group reads once what all its rows share.

    Args:
      common: pages that row i and row i + 1 share, the rows being sorted by their pages.

    Returns:
      The groups of two rows and more, each row in one of them at most.
    """
    # The rows are the leaves of a tree. From the deepest forks up, neighbouring runs of rows are joined; at each fork
    # the groups that save no more than their rows would there become one.
    runs = {i: (i, i, [Group([i], 0)]) for i in range(len(common) + 1)}  # (first row, last row, groups), by either
    for i in sorted(range(len(common)), key=common.__getitem__, reverse=True):
        (begin, _, left), (_, end, right) = runs[i], runs[i + 1]
        num_pages = common[i]
        groups = left + right
        joining = [group for group in groups if group.saved_pages <= len(group.rows) * num_pages]
        joined = Group([row for group in joining for row in group.rows], num_pages)
        if joined.saved_pages >= sum(group.saved_pages for group in joining):
            groups = [group for group in groups if group.saved_pages > len(group.rows) * num_pages] + [joined]
        runs[begin] = runs[end] = begin, end, groups
    return [group for group in runs[0][2] if group.saved_pages > 0]
