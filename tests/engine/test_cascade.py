"""Decoding rows that share a prefix read it together: who is put together, and that the output stays what it was."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgjax import SamplingParams
from sgjax.engine import sharing
from sgjax.engine.lowering import ForwardKey
from sgjax.engine.sharing import PrefixSharing, best_groups
from sgjax.kernels import resolve

PAGE = 16


def _most_saved(common: list[int]) -> int:
    """By trying every division into runs of neighbours."""

    @functools.cache
    def best(end: int) -> int:
        if end <= 1:
            return 0
        alone = best(end - 1)
        runs = (best(begin) + (end - begin - 1) * min(common[begin : end - 1]) for begin in range(end - 1))
        return max(alone, *runs)

    return best(len(common) + 1)


@given(st.lists(st.integers(0, 9), max_size=12))
def test_groups_save_nearly_what_can_be_saved(common):
    groups = best_groups(common)
    assert 2 * sum(group.saved_pages for group in groups) >= _most_saved(common)
    taken = [row for group in groups for row in group.rows]
    assert len(taken) == len(set(taken))
    for group in groups:
        assert len(group.rows) >= 2
        assert 0 < group.num_pages <= min(common[min(group.rows) : max(group.rows)])


def _rows(*tables: tuple[list[int], int]) -> tuple[list[Any], np.ndarray]:
    """Rows of (pages, position of the newest token), and the page table by slot."""
    page_table = np.full((len(tables) + 1, 8), 999, np.int32)
    rows = []
    for slot, (pages, start) in enumerate(tables):
        page_table[slot, : len(pages)] = pages
        rows.append(SimpleNamespace(seq=SimpleNamespace(slot=slot), start=start, length=1, sample=True))
    return rows, page_table


def test_rows_of_a_group_become_neighbours():
    full = 4 * PAGE
    rows, page_table = _rows(
        ([1, 2, 3, 10, 11], full), ([7, 20], 20), ([1, 2, 3, 12], full - 1), ([7, 30], 25), ([5], 3), ([1, 2, 13], 40)
    )
    before = list(rows)
    shared = PrefixSharing(PAGE, 1).arrange(rows, page_table, 8)
    assert shared is not None
    groups = [rows[a:b] for a, b in zip(shared.starts, shared.starts[1:], strict=False)]
    assert shared.lens.tolist() == [2 * PAGE, PAGE]
    assert [sorted(before.index(row) for row in group) for group in groups] == [[0, 2, 5], [1, 3]]
    assert rows[5:] == [before[4]]


def test_the_page_that_is_being_written_is_not_shared():
    rows, page_table = _rows(([1, 2], PAGE + 3), ([1, 2], PAGE + 3))
    shared = PrefixSharing(PAGE, 1).arrange(rows, page_table, 4)
    assert shared is not None
    assert shared.lens.tolist() == [PAGE]
    rows, page_table = _rows(([1], PAGE - 1), ([1], PAGE - 1))
    assert PrefixSharing(PAGE, 1).arrange(rows, page_table, 4) is None


def test_too_little_to_save_leaves_the_rows_alone():
    rows, page_table = _rows(([1, 2, 3], 40), ([9], 3), ([1, 2, 4], 40))
    before = list(rows)
    assert PrefixSharing(PAGE, 2 * PAGE + 1).arrange(rows, page_table, 4) is None
    assert rows == before
    assert PrefixSharing(PAGE, 2 * PAGE).arrange(rows, page_table, 4) is not None


def test_groups_are_kept_until_pages_change():
    rows, page_table = _rows(([1, 2], 20), ([1, 3], 20))
    found = PrefixSharing(PAGE, 1)
    assert found.arrange(rows, page_table, 4) is not None
    page_table[1, 0] = 8
    assert found.arrange(rows, page_table, 4) is not None
    found.forget()
    assert found.arrange(rows, page_table, 4) is None


@pytest.fixture
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    prefixes = [rng.integers(10, 49000, n).tolist() for n in (70, 100)]
    return [prefixes[i % 2] + rng.integers(10, 49000, 5 + 3 * i).tolist() for i in range(6)] + [[11, 12, 13]]


def test_output_is_the_same(make_engine, prompts, monkeypatch):
    """And the steps that read prefixes together are those of the rows that share one, unless told not to."""
    monkeypatch.setitem(sharing.CASCADE_MIN_SAVED_TOKENS, "cpu", 64)
    params = SamplingParams(temperature=0.0, max_new_tokens=24, ignore_eos=True)
    outputs, groups = {}, {}
    for disabled in (False, True):
        engine = make_engine(disable_cascade_attention=disabled)
        results = engine.generate(input_ids=prompts, sampling_params=params)
        outputs[disabled] = [result.output_ids for result in results]
        ready = engine._core.runner.compiler._ready
        groups[disabled] = {key.num_groups for key in ready if isinstance(key, ForwardKey)}
    assert outputs[False] == outputs[True]
    assert max(groups[False]) == 2
    assert groups[True] == {0}


def test_a_kernel_joins_parts_only_if_it_says_that_it_can(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sgjax.kernels.paged_decode.xla import paged_decode as of_xla\n"
        "def paged_decode(*args, **options): return of_xla(*args, **options)\n"
    )
    assert not resolve(f"paged_decode={tmp_path}/mine.py:paged_decode", "cpu").supports_cascade
    assert resolve("", "cpu").supports_cascade
    assert resolve("*=xla", "cpu").supports_cascade
