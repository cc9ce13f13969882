"""The padded shapes for which steps are compiled."""

from __future__ import annotations

import bisect
import dataclasses

# A prefill step of few tokens, such as a short prompt or what a grammar forces, is mostly of few rows too.
FEW_TOKENS, FEW_ROWS = 32, 4


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Each ascending.

    Attributes:
      decode_rows: S of decode steps. decode_pages: P of decode steps, in pages.
      prefill: (T, S) of prefill steps; the last holds every step. max_pages: their P.
      cascade: whether decode steps also come with shared prefixes; then with `max_pages`.
    """

    decode_rows: tuple[int, ...]
    decode_pages: tuple[int, ...]
    prefill: tuple[tuple[int, int], ...]
    max_pages: int
    cascade: bool = False

    @classmethod
    def make(
        cls,
        *,
        max_running: int,
        chunk_tokens: int,
        prefill_rows: int,
        max_pages: int,
        min_pages: int,
        cascade: bool = False,
    ) -> Buckets:
        """Powers of two up to each limit, and the limit itself; `min_pages` is the smallest P of a decode step."""
        tokens = _powers(8, chunk_tokens)
        few = [(n, min(FEW_ROWS, prefill_rows)) for n in tokens if n <= FEW_TOKENS]
        many = [(n, prefill_rows) for n in tokens if n >= min(FEW_TOKENS, chunk_tokens)]
        return cls(
            decode_rows=_powers(4, max_running),
            decode_pages=_powers(min_pages, max_pages),
            prefill=tuple(sorted({*few, *many})),
            max_pages=max_pages,
            cascade=cascade,
        )

    def prefill_shape(self, num_tokens: int, num_rows: int) -> tuple[int, int]:
        """The smallest (T, S) that holds a prefill step."""
        return next(shape for shape in self.prefill if shape[0] >= num_tokens and shape[1] >= num_rows)


def _powers(low: int, high: int) -> tuple[int, ...]:
    sizes = []
    while low < high:
        sizes.append(low)
        low *= 2
    return (*sizes, high)


def bucket(sizes: tuple[int, ...], n: int) -> int:
    """The smallest size that holds `n`."""
    return sizes[bisect.bisect_left(sizes, n)]
