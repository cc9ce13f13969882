"""In which order waiting sequences are considered for admission, and which are passed over."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np

from sgjax.config import SchedulePolicy
from sgjax.engine.batch import Row
from sgjax.engine.sequence import Sequence

# Under lpm every candidate is matched against the tree, so only this many of the oldest are ranked in one step.
MAX_RANKED = 128


def order_waiting(
    waiting: Seq[Sequence],
    policy: SchedulePolicy,
    *,
    most: int,
    now_s: float,
    aging_s: float,
    match_len: Callable[[Sequence], int],
) -> list[Sequence]:
    """The first `most` of the waiting queue in order; `waiting` comes in arrival order, preempted sequences first.

    fcfs keeps that order. lpm takes the longest cached prefix first, so that a hot prefix is used before it is
    evicted; priority takes the largest priority first. Under both, whoever has waited longer than `aging_s` goes
    before everybody who has not, oldest first: nobody waits for ever.
    """
    if policy == "fcfs" or len(waiting) < 2:
        return list(waiting[:most])

    old: list[Sequence] = []
    young: list[Sequence] = []
    for seq in waiting:
        is_old = seq.receipt.preemptions or now_s - seq.arrival_s > aging_s
        (old if is_old else young).append(seq)
        if len(old) == most:  # as when far more waits than is ever looked at
            return old
    if policy == "priority":
        young.sort(key=lambda seq: -seq.request.priority)
    else:
        young[:MAX_RANKED] = sorted(young[:MAX_RANKED], key=lambda seq: -match_len(seq))
    return (old + young)[:most]


def computed_by_another(seq: Sequence, page_start: int, page_end: int, rows: Seq[Row]) -> bool:
    """Whether a row of this step computes, now or in a later chunk, the page that `seq` needs next, to share."""
    if page_end > seq.match_limit:
        return False
    for row in rows:
        other = row.seq
        if (
            other.target >= page_end
            and other.request.extra_key == seq.request.extra_key
            and np.array_equal(other.tokens[page_start:page_end], seq.tokens[page_start:page_end])
            and np.array_equal(other.tokens[:page_start], seq.tokens[:page_start])
        ):
            return True
    return False
