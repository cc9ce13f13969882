"""The page allocator against a set."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sgjax.cache.pages import PageAllocator

NUM_PAGES = 12


class PagesMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pages = PageAllocator(NUM_PAGES)
        self.held: set[int] = set()

    @rule(num_pages=st.integers(0, NUM_PAGES + 2))
    def allocate(self, num_pages: int):
        if num_pages > NUM_PAGES - len(self.held):
            with pytest.raises(MemoryError):
                self.pages.allocate(num_pages)
            return
        pages = self.pages.allocate(num_pages)
        assert len(set(pages)) == num_pages
        assert self.held.isdisjoint(pages)
        self.held.update(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data):
        pages = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True))
        self.pages.free(pages)
        self.held.difference_update(pages)

    @invariant()
    def every_page_is_free_or_held(self):
        free = self.pages.free_pages()
        assert self.pages.num_free == len(free)
        assert sorted([*free, *self.held]) == list(range(NUM_PAGES))


TestPages = PagesMachine.TestCase
TestPages.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    "pages", [[0], [1, 1], [4], [-1]], ids=["never taken", "twice in one call", "too big", "negative"]
)
def test_a_wrong_free_is_refused(pages):
    allocator = PageAllocator(4)
    assert allocator.allocate(3) == [0, 1, 2]
    allocator.free([0])
    with pytest.raises(ValueError, match=f"page {pages[-1]} is"):
        allocator.free(pages)


def test_pages_come_back_first_and_in_order():
    allocator = PageAllocator(8)
    assert allocator.allocate(5) == [0, 1, 2, 3, 4]
    allocator.free([1, 2, 3])
    assert allocator.allocate(1) + allocator.allocate(3) == [1, 2, 3, 5]
