"""A moment of the engine for people to look at: statistics, the batch and the queue, the prefix tree."""

from __future__ import annotations

import itertools

from sgjax.engine.info import EngineStats, LiveSequence, LiveSnapshot
from sgjax.engine.scheduler import Scheduler

MAX_SEQUENCES = 64


def take_live_snapshot(scheduler: Scheduler, stats: EngineStats, max_nodes: int) -> LiveSnapshot:
    """To be called between two steps, in the engine's thread."""
    shown = itertools.islice(itertools.chain(scheduler.running, scheduler.waiting), MAX_SEQUENCES)
    sequences = [
        LiveSequence(
            is_running=i < len(scheduler.running),
            prompt_tokens=seq.num_prompt,
            cached_tokens=seq.receipt.cached_tokens,
            computed_tokens=seq.num_computed,
            completion_tokens=seq.receipt.completion_tokens,
        )
        for i, seq in enumerate(shown)
    ]
    held = [seq.prefix for seq in reversed(scheduler.running) if seq.prefix is not None]
    return LiveSnapshot(stats, tuple(sequences), scheduler.cache.snapshot(held, max_nodes))
