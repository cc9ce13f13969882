"""Requests and results: plain immutable values, shared by every layer and free of jax.

A request is validated once, at the door (`SamplingParams.validate`, `Request.validate`). What passes is never
re-checked inside the engine, and what fails names the field (`RequestError.field`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from sgjax.errors import QueueFull as QueueFull
from sgjax.errors import RequestError as RequestError
from sgjax.sampling_params import MAX_LOGIT_BIAS as MAX_LOGIT_BIAS
from sgjax.sampling_params import MAX_STOP_TOKENS as MAX_STOP_TOKENS
from sgjax.sampling_params import GrammarSpec as GrammarSpec
from sgjax.sampling_params import SamplingParams as SamplingParams
from sgjax.sampling_params import check_text

MAX_TOP_LOGPROBS = 32
MAX_LOGPROB_TOKENS = 128
MAX_PRIORITY = 2**31


@dataclasses.dataclass(frozen=True, slots=True)
class KVSpec:
    """What one layer keeps per token: `num_kv_heads` keys and as many values, of `head_dim` numbers each."""

    num_kv_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt as token ids, with what the caller wants back.

    Attributes:
      rid: the caller's id, unique among live requests. With `n` > 1 sample i is `(rid, i)`.
      return_logprob: log-probabilities of the chosen tokens, of the raw model distribution (before
        temperature, penalties and filters).
      logprob_start_len: with `return_logprob`, prompt tokens from this position on get theirs too; -1 is none.
      top_logprobs_num: alternatives per position. token_ids_logprob: ids reported at every position.
      extra_key: a namespace. Prefixes are shared only between requests with an equal key.
      priority: larger runs earlier under the `priority` policy.
    """

    rid: str
    input_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    token_ids_logprob: tuple[int, ...] = ()
    priority: int = 0
    extra_key: str = ""

    def validate(self, *, vocab_size: int, context_length: int, max_total_tokens: int) -> None:
        """Refuses what could never run. `max_total_tokens` is what the whole KV pool holds."""
        self._validate_kinds()
        num_prompt = len(self.input_ids)
        if num_prompt == 0:
            raise RequestError("input_ids", "the prompt is empty")
        low, high = min(self.input_ids), max(self.input_ids)
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise RequestError("input_ids", f"token id {bad} is outside the vocabulary [0, {vocab_size})")
        if num_prompt >= context_length:
            raise RequestError("input_ids", f"{num_prompt} tokens do not fit in the context of {context_length}")
        wanted = self.sampling.max_new_tokens
        if wanted is not None and num_prompt + wanted > context_length:
            raise RequestError(
                "max_new_tokens", f"{num_prompt} prompt + {wanted} new tokens exceed the context of {context_length}"
            )
        total = num_prompt + (1 if wanted is None else wanted)
        if total > max_total_tokens:
            raise RequestError(
                "max_new_tokens", f"{total} tokens can never fit in the KV pool of {max_total_tokens} tokens"
            )
        for token in (*self.sampling.stop_token_ids, *(self.sampling.logit_bias or ())):
            if not 0 <= token < vocab_size:
                field = "stop_token_ids" if token in self.sampling.stop_token_ids else "logit_bias"
                raise RequestError(field, f"token id {token} is outside the vocabulary [0, {vocab_size})")
        self._validate_logprobs(vocab_size)

    def _validate_kinds(self) -> None:
        for name in ("logprob_start_len", "top_logprobs_num", "priority"):
            if type(getattr(self, name)) is not int:
                raise RequestError(name, f"must be an integer, not {getattr(self, name)!r}")
        if abs(self.priority) > MAX_PRIORITY:
            raise RequestError("priority", f"must lie in [-{MAX_PRIORITY}, {MAX_PRIORITY}]")
        if any(type(token) is not int for token in self.token_ids_logprob):
            raise RequestError("token_ids_logprob", "every item must be an integer")
        for name in ("rid", "extra_key"):
            check_text(name, getattr(self, name))

    def _validate_logprobs(self, vocab_size: int) -> None:
        if not 0 <= self.top_logprobs_num <= MAX_TOP_LOGPROBS:
            raise RequestError("top_logprobs_num", f"must lie in [0, {MAX_TOP_LOGPROBS}]")
        if len(self.token_ids_logprob) > MAX_LOGPROB_TOKENS:
            raise RequestError("token_ids_logprob", f"at most {MAX_LOGPROB_TOKENS} ids")
        if any(not 0 <= token < vocab_size for token in self.token_ids_logprob):
            raise RequestError("token_ids_logprob", f"ids must lie in [0, {vocab_size})")
        if not -1 <= self.logprob_start_len <= len(self.input_ids):
            raise RequestError("logprob_start_len", f"must lie in [-1, {len(self.input_ids)}]")
        if not self.return_logprob and (self.top_logprobs_num or self.token_ids_logprob):
            raise RequestError("return_logprob", "must be true for top_logprobs_num or token_ids_logprob")


@dataclasses.dataclass(frozen=True, slots=True)
class FinishReason:
    """Why a request ended.

    `kind` "stop": `matched` is the stop token id, the stop string or the regular expression's match.
    "length": max_new_tokens or the context is used up. "abort": `message` says why.
    """

    kind: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str | None = None


@dataclasses.dataclass(slots=True)
class PromptParts:
    """Where a prompt's tokens came from, and why not from the cache. The parts add up to the prompt.

    Attributes:
      cached: they were in the radix tree when the request arrived.
      shared_in_flight: another request computed them while this one waited.
      not_in_cache: from the page on in which the prompt first differs from everything that is cached.
      evicted: they were cached once, and had to make room; only as far as that is remembered.
      logprobs_recomputed: they are cached, but log-probabilities of the prompt were asked for.
      cache_disabled: they were not looked up.
      page_remainder: behind the last whole page that any cache could give; only whole pages are shared.
      last_token: 1: the last token is always computed, for its logits. 0 where forced tokens follow the prompt.
    """

    cached: int = 0
    shared_in_flight: int = 0
    not_in_cache: int = 0
    evicted: int = 0
    logprobs_recomputed: int = 0
    cache_disabled: int = 0
    page_remainder: int = 0
    last_token: int = 0

    def add(self, other: PromptParts) -> None:
        """Adds another prompt's parts to these."""
        for name in _PROMPT_PARTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_PROMPT_PARTS = tuple(field.name for field in dataclasses.fields(PromptParts))


@dataclasses.dataclass(slots=True)
class Receipt:
    """What one request cost and what the cache gave it. Times are seconds.

    Attributes:
      queue_s: from arrival to the first step that worked on it.
      ttft_s: from arrival to the first token on the host.
      e2e_s: from arrival to the end.
      cached_tokens: prompt tokens whose KV came from the radix tree (at first admission).
      computed_tokens: tokens that went through the model, recomputation after preemption included.
      pages: KV pages held at the end. steps: steps that worked on the request.
      forced_tokens: completion tokens that the grammar forced, so that nothing had to be sampled (jump-forward).
      weight_version: of the weights that served at the end; "default" until they are replaced.
      prompt_parts: the prompt by what the cache had for it (at first admission); None when it was never admitted.
    """

    queue_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    pages: int = 0
    steps: int = 0
    preemptions: int = 0
    forced_tokens: int = 0
    weight_version: str = "default"
    prompt_parts: PromptParts | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token there, of the `top` best, of the `asked` ids.

    `logprob` is None for the first prompt token, which nothing predicts.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    asked: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(slots=True)
class TokenEvent:
    """What one step says about one sequence: tokens in order, and the end when it has come.

    The engine core speaks in these; text appears only in the output processor. `receipt` comes with the first event, as
    far as it is by then, and is complete with the last, which has `finish`.
    """

    rid: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    receipt: Receipt | None = None


@dataclasses.dataclass(slots=True)
class OutputDelta:
    """What became visible of one sample since the last delta: what a request's handle yields.

    `text` may lag behind `token_ids`: bytes of an unfinished character and the possible start of a stop string are
    held back. `finish` is None until the last delta. `receipt` comes with the first too, to tell what was
    cached, and is complete with `finish`.
    """

    rid: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    receipt: Receipt | None = None


@dataclasses.dataclass(slots=True)
class GenerateOutput:
    """One sample of one request: the sum of its deltas so far."""

    rid: str
    index: int
    prompt_ids: tuple[int, ...]
    text: str = ""
    output_ids: list[int] = dataclasses.field(default_factory=list)
    finish: FinishReason | None = None
    receipt: Receipt | None = None
    output_logprobs: list[TokenLogprobs] | None = None
    input_logprobs: list[TokenLogprobs] | None = None

    def add(self, delta: OutputDelta) -> None:
        """Appends a delta of the same sample."""
        self.text += delta.text
        self.output_ids += delta.token_ids
        if delta.logprobs is not None:
            self.output_logprobs = (self.output_logprobs or []) + delta.logprobs
        if delta.prompt_logprobs is not None:
            self.input_logprobs = delta.prompt_logprobs
        self.finish = delta.finish
        self.receipt = delta.receipt or self.receipt
