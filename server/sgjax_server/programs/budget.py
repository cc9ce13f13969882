"""What one program may use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from sgjax.lang.program_json import MAX_STATES
from sgjax.types import RequestError

MAX_STEPS = 20_000  # operations executed, those of loops each time
MAX_CHARS = 1 << 24  # of text appended and values set
MAX_VALUE_CHARS = 1 << 20
MAX_TOKENS = 1 << 20  # generated


class Budget:
    """Counts what a program uses while it runs. Each method raises RequestError for what is too much. Thread-safe.

    Attributes:
      at: the path of the operation being executed, which is the field of those errors.
    """

    def __init__(self) -> None:
        self.at = "program"
        self._lock = threading.Lock()
        self._left = {"operations": MAX_STEPS, "states": MAX_STATES, "characters": MAX_CHARS, "tokens": MAX_TOKENS}

    def step(self, at: str) -> None:
        self.at = at
        self._take("operations", 1)

    def states(self, count: int) -> None:
        self._take("states", count)

    def value(self, value: Any) -> None:
        self._take("characters", _size(value))

    def reserve_tokens(self, count: int) -> None:
        """Before a generation, for as many as it may come to. `return_tokens` gives back what it did not use."""
        self._take("tokens", count)

    def return_tokens(self, count: int) -> None:
        with self._lock:
            self._left["tokens"] += count

    def joined(self, texts: Sequence[Any]) -> str:
        """Values as one text, which is never longer than a value may be."""
        parts, size = [], 0
        for text in texts:
            size += _size(text)
            if size > MAX_VALUE_CHARS:
                raise RequestError(self.at, f"makes a value of more than {MAX_VALUE_CHARS} characters")
            parts.append(str(text))
        return "".join(parts)

    def _take(self, what: str, count: int) -> None:
        with self._lock:
            self._left[what] -= count
            if self._left[what] < 0:
                raise RequestError(self.at, f"the program uses more {what} than it may")


def _size(value: Any) -> int:
    """About the characters of a value as text."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _size(item) for key, item in value.items()) + 2
    return sum(map(_size, value)) + 2 if isinstance(value, list) else 8
