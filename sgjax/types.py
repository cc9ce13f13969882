"""Requests and results: plain immutable values, shared by every layer and free of jax.

A request is validated once, at the door (`SamplingParams.validate`, `Request.validate`). What passes is never
re-checked inside the engine, and what fails names the field (`RequestError.field`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

MAX_LOGIT_BIAS = 320
MAX_STOP_TOKENS = 32
MAX_STOPS = 32  # stop strings, and as many regular expressions: every step looks for them in the engine's thread
MAX_STOP_LEN = 1024  # characters of one
MAX_TOP_LOGPROBS = 32
MAX_LOGPROB_TOKENS = 128
MAX_SAMPLES = 1024
# Counts beyond these ranges do not survive the device's int32 and float32. Clients do send top_k 2**30.
MAX_COUNT = 2**30
MAX_BIAS = 1e30
# Below this a temperature means greedy, as in SGLang; float32 would make infinities of it.
MIN_TEMPERATURE = 1e-6


class RequestError(ValueError):
    """A request that is refused. `field` is the name under which the caller passed the offending value."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class QueueFull(RuntimeError):
    """The waiting queue is full. The request is fine and may be sent again later."""


def _as_tuple(value: Any, kind: type, field: str) -> tuple:
    """Normalises None, one value or a sequence of values to a tuple of `kind`."""
    if value is None:
        return ()
    if isinstance(value, kind) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestError(field, f"must be {kind.__name__} or a list of {kind.__name__}, not {value!r}")
    for item in value:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise RequestError(field, f"every item must be {kind.__name__}, not {item!r}")
    return tuple(value)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Names and defaults follow SGLang's `sampling_params`.

    Construction normalises (a single stop string becomes a tuple) and checks; a bad value raises
    `RequestError` with the parameter's name.

    Attributes:
      max_new_tokens: upper bound on generated tokens; 0 only computes the prompt (scoring). None means
        as many as the context allows.
      min_new_tokens: end-of-sequence and stop tokens cannot be chosen before this many tokens.
      temperature: 0 is greedy (argmax).
      top_k: -1 (or 0) means the whole vocabulary.
      seed: draws depend on (seed, position) alone, never on neighbours in the batch. None draws a seed.
      stop: strings, matched in the decoded text across token borders; the match is cut unless `no_stop_trim`.
      n: samples of this prompt; sample i uses seed + i.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    seed: int | None = None

    def __post_init__(self):
        set_ = object.__setattr__
        set_(self, "stop", _as_tuple(self.stop, str, "stop"))
        set_(self, "stop_token_ids", _as_tuple(self.stop_token_ids, int, "stop_token_ids"))
        set_(self, "stop_regex", _as_tuple(self.stop_regex, str, "stop_regex"))
        _check_integers(self)
        _check_reals(self)
        _check_stops(self)
        if self.temperature < MIN_TEMPERATURE:
            set_(self, "temperature", 0.0)
        set_(self, "logit_bias", _normal_bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """From a JSON object with SGLang's names. An unknown name is refused, not ignored."""
        values = dict(values)
        if "sampling_seed" in values:
            values.setdefault("seed", values.pop("sampling_seed"))
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise RequestError(name, "unknown sampling parameter")
        return cls(**values)


def _check_integers(p: SamplingParams) -> None:
    def check(name: str, low: int, high: int = MAX_COUNT, *, optional: bool = False):
        value = getattr(p, name)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise RequestError(name, f"must be an integer, not {value!r}")
        if not low <= value <= high:
            raise RequestError(name, f"must lie in [{low}, {high}], not {value}")

    check("max_new_tokens", 0, optional=True)
    check("min_new_tokens", 0)
    check("n", 1, MAX_SAMPLES)
    check("top_k", -1)
    check("seed", -(2**63), 2**63 - 1, optional=True)
    if p.max_new_tokens is not None and p.min_new_tokens > p.max_new_tokens:
        raise RequestError("min_new_tokens", f"{p.min_new_tokens} exceeds max_new_tokens {p.max_new_tokens}")


def _check_reals(p: SamplingParams) -> None:
    def check(name: str, low: float, high: float, *, open_low: bool = False):
        value = getattr(p, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise RequestError(name, f"must be a number, not {value!r}")
        if not low <= value <= high or (open_low and value == low):
            raise RequestError(name, f"must lie in {'(' if open_low else '['}{low}, {high}], not {value}")

    check("temperature", 0.0, 100.0)
    check("top_p", 0.0, 1.0, open_low=True)
    check("min_p", 0.0, 1.0)
    check("frequency_penalty", -2.0, 2.0)
    check("presence_penalty", -2.0, 2.0)
    check("repetition_penalty", 0.01, 10.0)


def _check_text(field: str, text: Any) -> None:
    """JSON can hold what is no text: a lone surrogate."""
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise RequestError(field, f"{text!r} is not valid Unicode") from None


def _check_stops(p: SamplingParams) -> None:
    if any(not s for s in p.stop):
        raise RequestError("stop", "an empty string would stop at once")
    for name in ("stop", "stop_regex"):
        if len(getattr(p, name)) > MAX_STOPS:
            raise RequestError(name, f"at most {MAX_STOPS}")
        for text in getattr(p, name):
            _check_text(name, text)
            if len(text) > MAX_STOP_LEN:
                raise RequestError(name, f"at most {MAX_STOP_LEN} characters each")
    if len(p.stop_token_ids) > MAX_STOP_TOKENS:
        raise RequestError("stop_token_ids", f"at most {MAX_STOP_TOKENS} ids")
    for pattern in p.stop_regex:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise RequestError("stop_regex", f"{pattern!r} is not a regular expression: {error}") from None


def _normal_bias(bias: Mapping[Any, Any] | None) -> dict[int, float] | None:
    """Token ids may come as strings (JSON keys); values must be finite."""
    if not bias:
        return None
    if not isinstance(bias, Mapping):
        raise RequestError("logit_bias", f"must map token ids to numbers, not {bias!r}")
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError("logit_bias", f"at most {MAX_LOGIT_BIAS} entries")
    result = {}
    for key, value in bias.items():
        try:
            token, number = int(key), float(value)
        except (TypeError, ValueError, OverflowError):
            raise RequestError("logit_bias", f"must map token ids to numbers, not {key!r}: {value!r}") from None
        if not abs(number) <= MAX_BIAS:
            raise RequestError("logit_bias", f"the value of token {token} must lie in [-{MAX_BIAS}, {MAX_BIAS}]")
        result[token] = number
    return result


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
        if any(type(token) is not int for token in self.token_ids_logprob):
            raise RequestError("token_ids_logprob", "every item must be an integer")
        for name in ("rid", "extra_key"):
            _check_text(name, getattr(self, name))

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
class Receipt:
    """What one request cost and what the cache gave it. Times are seconds.

    Attributes:
      queue_s: from arrival to the first step that worked on it.
      ttft_s: from arrival to the first token on the host.
      e2e_s: from arrival to the end.
      cached_tokens: prompt tokens whose KV came from the radix tree (at first admission).
      computed_tokens: tokens that went through the model, recomputation after preemption included.
      pages: KV pages held at the end. steps: steps that worked on the request.
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

    The engine core speaks in these; text appears only in the output processor.
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
    held back. `finish` is None until the last delta. `receipt` is complete with `finish`.
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
