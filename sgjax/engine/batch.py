"""What the scheduler decides, as values: the rows of one step, within limits, and totals of all steps."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sgjax.config import SchedulePolicy
from sgjax.engine.sequence import Sequence

StepKind = Literal["prefill", "decode"]


@dataclasses.dataclass(slots=True)
class Row:
    """Tokens [start, start + length) of one sequence; `sample` when a token is drawn after the last of them.

    A row that waits for its grammar's mask may lose its `sample` after its launch.
    """

    seq: Sequence
    start: int
    length: int
    sample: bool


@dataclasses.dataclass(slots=True)
class Batch:
    """The work of one step. `launched_s`: when it was given to the device, by `time.monotonic`."""

    kind: StepKind
    rows: list[Row]
    launched_s: float = 0.0

    @property
    def constrained(self) -> bool:
        """Whether the tokens of this step depend on a grammar, and so on the tokens before it."""
        return any(row.sample and row.seq.matcher is not None for row in self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What one step and the running set may hold. `prefill_rows`: sequences in one prefill step."""

    max_running: int
    chunk_tokens: int
    prefill_rows: int
    policy: SchedulePolicy = "lpm"
    aging_s: float = 2.0


@dataclasses.dataclass(slots=True)
class SchedulerCounters:
    """Totals since the start."""

    num_requests: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
