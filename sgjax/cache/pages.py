"""The free list of KV pages."""

from __future__ import annotations

from collections.abc import Sequence


class PageAllocator:
    """Hands out page ids and takes them back; O(1) per page.

    Last in, first out, since a page freed a moment ago is the likeliest to be in the processor's cache; and in the
    order in which pages were freed, so that a sequence gets runs of neighbouring pages where there are any.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # the next one last
        self._is_free = bytearray(b"\x01" * num_pages)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_pages: int) -> list[int]:
        """Takes `num_pages` pages; the caller owns them until `free`.

        Raises:
          MemoryError: fewer are free; nothing was taken.
        """
        if num_pages > len(self._free):
            raise MemoryError(f"{num_pages} pages wanted, {len(self._free)} free")
        split = len(self._free) - num_pages
        pages = self._free[split:][::-1]
        del self._free[split:]
        is_free = self._is_free
        for page in pages:
            is_free[page] = 0
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Takes pages back.

        Raises:
          ValueError: a page is free already or was never one of ours: somebody's accounting is broken, and going on
            would give two sequences the same memory.
        """
        is_free = self._is_free
        for page in pages:
            if not 0 <= page < self.num_pages:
                raise ValueError(f"page {page} is outside the pool of {self.num_pages}")
            if is_free[page]:
                raise ValueError(f"page {page} is freed twice")
            is_free[page] = 1
        self._free.extend(reversed(pages))

    def free_pages(self) -> list[int]:
        """A copy of the free list, for checks."""
        return list(self._free)
