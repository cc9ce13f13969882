"""What the engine tells whoever watches it. It works the same when nobody does."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.engine.batch import Batch
    from sgjax.engine.sequence import Sequence
    from sgjax.types import TokenEvent


class EngineObserver:
    """Ignores everything. Subclasses override what they want to know; they must be quick, and must not raise.

    Called by the engine's thread, except where a method says otherwise.
    """

    def on_admitted(self, seq: Sequence) -> None:
        """A sequence left the waiting queue for the first time; its receipt says what the cache had for it."""

    def on_step(self, batch: Batch, seconds: float) -> None:
        """A step's results are here, `seconds` after its launch, or after the step before where that ended later."""

    def on_events(self, events: Seq[TokenEvent]) -> None:
        """Tokens and ends of sequences, as they leave the core."""

    def on_evicted(self, num_pages: int, seconds: float) -> None:
        """Cached pages gave way, which held up the step that needed room for `seconds`."""

    def on_grammar_compiled(self, seconds: float) -> None:
        """A grammar is ready. Called by the compiler's threads, one at a time."""


NOBODY = EngineObserver()
