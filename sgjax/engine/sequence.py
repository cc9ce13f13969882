"""One sample of one request while it lives in the engine. Owned by the scheduler; nobody else writes to it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import numpy as np

from sgjax.types import Receipt, Request, TokenLogprobs

if TYPE_CHECKING:
    from sgjax.cache.manager import Prefix
    from sgjax.grammar import Matcher


class Status(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Sequence:
    """Tokens, pages and progress of one sample.

    Three counters describe progress, with `num_computed <= num_tokens`:
      num_tokens: tokens known on the host (prompt and committed output).
      num_computed: leading tokens whose KV is in the cache, or will be once the launched steps have run.
      num_pending: 1 while a sampled token is on the device but not yet committed, else 0.

    Attributes:
      target: the prefill is complete when `num_computed` reaches this; the tokens known at admission.
      max_tokens: `num_tokens` never exceeds this (prompt + max_new_tokens, within the context).
      pages: KV pages in order. The first `prefix.num_tokens / page_size` belong to the radix tree and are locked
        through `prefix`; the rest are private to this sequence.
      pages_changed: `pages` was rewritten rather than appended to; whoever mirrors it must copy it anew.
      seed: of this sample; draws depend on it and the position alone.
      matcher: the grammar's state after all `num_tokens`; None when the output is free.
      jumps: whether tokens that the grammar forces are appended without sampling.
      num_cached_at_arrival: tokens that the radix tree had for it when it was queued.
      unreported: output tokens that no event has told of yet (forced before the first step).
    """

    __slots__ = (
        "admitted",
        "arrival_s",
        "index",
        "jumps",
        "matcher",
        "max_tokens",
        "num_cached_at_arrival",
        "num_computed",
        "num_pending",
        "num_prompt",
        "num_tokens",
        "pages",
        "pages_changed",
        "prefix",
        "prompt_logprobs",
        "receipt",
        "request",
        "seed",
        "slot",
        "status",
        "stop_ids",
        "target",
        "tokens",
        "unreported",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        seed: int,
        stop_ids: frozenset[int],
        context_length: int,
        arrival_s: float,
    ):
        wanted = request.sampling.max_new_tokens
        num_prompt = len(request.input_ids)
        room = context_length - num_prompt
        self.request = request
        self.index = index
        self.seed = seed
        self.stop_ids = stop_ids
        self.num_prompt = self.num_tokens = self.target = num_prompt
        self.max_tokens = num_prompt + (room if wanted is None else min(wanted, room))
        self.tokens = np.empty(self.max_tokens, np.int32)
        self.tokens[:num_prompt] = request.input_ids
        self.num_cached_at_arrival = 0
        self.num_computed = 0
        self.num_pending = 0
        self.status = Status.WAITING
        self.slot = -1
        self.pages: list[int] = []
        self.pages_changed = True
        self.prefix: Prefix | None = None
        self.arrival_s = arrival_s
        self.admitted = False
        self.receipt = Receipt(prompt_tokens=num_prompt)
        self.matcher: Matcher | None = None
        self.jumps = False
        self.unreported: list[int] = []
        start = request.logprob_start_len if request.return_logprob else -1
        unknown: list[TokenLogprobs | None] = [None] * (num_prompt - start)
        self.prompt_logprobs = unknown if start >= 0 else None

    def constrain(self, matcher: Matcher, *, jump_forward: bool) -> None:
        """Makes the output follow a grammar; before the sequence is handed to the scheduler.

        What the grammar forces at the start becomes part of the first prefill, except for a last token that is left
        to be sampled, so that the sequence has a step of its own to end with.
        """
        self.matcher = matcher
        # Forced tokens have no log-probabilities: nothing computed logits where they stand.
        self.jumps = jump_forward and not self.request.return_logprob
        self.unreported = self.forced()[: max(self.max_tokens - self.num_tokens - 1, 0)]
        self.append_forced(self.unreported)
        if self.unreported and matcher.is_stopped:
            matcher.rollback(1)
            self.unreported.pop()
            self._count_forced(-1)

    def forced(self) -> list[int]:
        """The tokens that the grammar forces next, within `max_tokens`; none where one of them is a stop."""
        if not self.jumps or self.matcher is None:
            return []
        forced = self.matcher.forced()[: self.max_tokens - self.num_tokens]
        return forced if self.stop_ids.isdisjoint(forced) else []

    def append_forced(self, forced: list[int]) -> None:
        """Takes forced tokens into the output; they are then to be computed like a prompt's."""
        assert self.matcher is not None
        for token in forced:
            self.matcher.accept(token)
        self.tokens[self.num_tokens : self.num_tokens + len(forced)] = forced
        self._count_forced(len(forced))

    def _count_forced(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        self.target = self.num_tokens
        self.receipt.completion_tokens += num_tokens
        self.receipt.forced_tokens += num_tokens

    def store_prompt_logprobs(self, position: int, values: list[TokenLogprobs]) -> None:
        """Keeps log-probabilities of the prompt tokens from `position` on, or from the first that was asked for."""
        assert self.prompt_logprobs is not None
        first = self.request.logprob_start_len
        for at, value in enumerate(values, max(position, first)):
            if at < self.num_prompt:
                self.prompt_logprobs[at - first] = value

    def take_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """Once, with the first event: everything asked about the prompt."""
        if self.prompt_logprobs is None:
            return None
        found, self.prompt_logprobs = self.prompt_logprobs, None
        if self.request.logprob_start_len == 0:
            found[0] = TokenLogprobs(self.request.input_ids[0], None)
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None  # aborted before the whole prompt was computed

    @property
    def prefilled(self) -> bool:
        return self.num_computed >= self.target

    @property
    def decodable(self) -> bool:
        """Whether one more decode step is wanted, as far as the host can know now."""
        return self.prefilled and self.num_tokens + self.num_pending < self.max_tokens

    @property
    def match_limit(self) -> int:
        """Tokens that may come from the cache: at least one is computed, for its logits; and every position whose
        log-probability is wanted needs its predecessor's hidden state."""
        limit = self.num_tokens - 1
        if self.prompt_logprobs is not None:
            limit = min(limit, max(self.request.logprob_start_len - 1, 0))
        return limit

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.rid}/{self.index} {self.status.name} "
            f"computed {self.num_computed} of {self.num_tokens}+{self.num_pending}, {len(self.pages)} pages)"
        )
