"""A model and grammars of four tokens, whose next token is a hash of those before: for tests without a device."""

from __future__ import annotations

import numpy as np

VOCAB_SIZE = 4


def mix(state: int, token: int) -> int:
    """The state after one more token."""
    return (state * 6364136223846793005 + token * 1442695040888963407 + 1) % 2**61


def next_token(state: int) -> int:
    return (state >> 33) % VOCAB_SIZE


class FakeMatcher:
    """A grammar of numbers: the tokens so far decide which may follow, often one alone, rarely none."""

    def __init__(self, seed: int, max_len: int):
        self.states = [seed]
        self.max_len = max_len
        self.allowed = self._allowed(seed)

    def _allowed(self, state: int) -> list[int]:
        choice = (state >> 13) % 64
        if choice == 0:
            return []
        return [choice % VOCAB_SIZE] if choice < 40 else [t for t in range(VOCAB_SIZE) if choice >> t & 1] or [0]

    @property
    def is_stopped(self) -> bool:
        return len(self.states) > self.max_len or self.error is not None

    @property
    def error(self) -> str | None:
        return None if self.allowed or len(self.states) > self.max_len else "nothing may follow"

    def accept(self, token: int) -> bool:
        assert token in self.allowed
        assert not self.is_stopped
        self.states.append(mix(self.states[-1], token))
        self.allowed = self._allowed(self.states[-1])
        return True

    def rollback(self, num_tokens: int) -> None:
        del self.states[-num_tokens:]
        self.allowed = self._allowed(self.states[-1])

    def forced(self) -> list[int]:
        found: list[int] = []
        while not self.is_stopped and len(self.allowed) == 1:
            found += self.allowed
            self.accept(found[-1])
        if found:
            self.rollback(len(found))
        return found

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0 if self.is_stopped else sum(1 << token for token in self.allowed)


def fill_masks(rows: list[tuple[FakeMatcher, int]], masks: np.ndarray) -> None:
    for matcher, i in rows:
        matcher.fill(masks[i])


def masked_token(state: int, mask: int) -> int:
    """The model's choice among the tokens whose bit is set."""
    first = next_token(state)
    allowed = [(first + i) % VOCAB_SIZE for i in range(VOCAB_SIZE) if mask >> (first + i) % VOCAB_SIZE & 1]
    return allowed[0] if allowed else 0
