"""How tokens are chosen and when to stop: checked once, when it is constructed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sgjax.errors import RequestError

MAX_LOGIT_BIAS = 320
MAX_STOP_TOKENS = 32
MAX_STOPS = 32  # stop strings, and as many regular expressions: every step looks for them in the engine's thread
MAX_STOP_LEN = 1024  # characters of one
MAX_SAMPLES = 1024
# Counts beyond these ranges do not survive the device's int32 and float32. Clients do send top_k 2**30.
MAX_COUNT = 2**30
MAX_BIAS = 1e30
# Below this a temperature means greedy, as in SGLang; float32 would make infinities of it.
MIN_TEMPERATURE = 1e-6
MAX_GRAMMAR_LEN = 1 << 20  # characters
MAX_CHOICES = 1024

GrammarKind = Literal["json_schema", "regex", "ebnf", "structural_tag", "choices"]
GRAMMAR_KINDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "ebnf", "structural_tag", "choices")


@dataclasses.dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an output must follow, as text: the key under which a compiled grammar is kept.

    `kind` is also the name of the request's field. `text`: a JSON schema, a regular expression, a grammar in EBNF (root
    rule `root`), SGLang's structural tag, or a JSON list of choices.
    """

    kind: GrammarKind
    text: str


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
      min_new_tokens: end-of-sequence and stop tokens cannot be chosen before this many tokens; not with a grammar.
      temperature: 0 is greedy (argmax).
      top_p: draw from the smallest set of the likeliest tokens that has this probability, in (0, 1].
      top_k: draw from this many of the likeliest tokens; -1 (or 0) means the whole vocabulary.
      min_p: least probability, as a share of the likeliest token's.
      frequency_penalty, presence_penalty: taken from a token's logit, per occurrence in the output and once for any.
      repetition_penalty: above 1 makes tokens of the prompt and the output less likely.
      logit_bias: added to the logits of these token ids, 320 at most.
      seed: draws depend on (seed, position) alone, never on neighbours in the batch. None draws a seed.
      stop: strings, matched in the decoded text across token borders; the match is cut unless `no_stop_trim`.
      stop_token_ids: end the output, like end-of-sequence. stop_regex: as `stop`, by regular expressions.
      ignore_eos: go on after end-of-sequence.
      skip_special_tokens: leave them out of the text.
      n: samples of this prompt; sample i uses seed + i.
      json_schema, regex, ebnf, structural_tag, choices: at most one; the output then follows that grammar. A schema
        and a structural tag are JSON text or the object itself; the output is one of the choices.
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
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    choices: tuple[str, ...] | None = None

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
        for name in ("json_schema", "structural_tag"):
            set_(self, name, _json_text(name, getattr(self, name)))
        if self.choices is not None:
            set_(self, "choices", _as_tuple(self.choices, str, "choices"))
        _check_grammar(self)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def grammar(self) -> GrammarSpec | None:
        """What the output must follow; None when it is free."""
        for kind in GRAMMAR_KINDS:
            if text := getattr(self, kind):
                return GrammarSpec(kind, json.dumps(text) if kind == "choices" else text)
        return None

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


def check_text(field: str, text: Any) -> None:
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
            check_text(name, text)
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


def _json_text(field: str, value: Any) -> str | None:
    """JSON text of an object or a boolean; text is kept as it is, so that what was sent is what an error quotes."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, (Mapping, bool)):
        raise RequestError(field, f"must be JSON text or an object, not {value!r}")
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(field, f"cannot be written as JSON: {error}") from None


def _check_grammar(p: SamplingParams) -> None:
    given = [kind for kind in GRAMMAR_KINDS if getattr(p, kind) is not None]
    if p.choices == ():
        raise RequestError("choices", "give at least one")
    for kind in given:
        for text in p.choices or () if kind == "choices" else (getattr(p, kind),):
            if not isinstance(text, str) or not text:
                raise RequestError(kind, "must be text, and not empty")
            check_text(kind, text)
            if len(text) > MAX_GRAMMAR_LEN:
                raise RequestError(kind, f"at most {MAX_GRAMMAR_LEN} characters")
    if len(given) > 1:
        raise RequestError(given[1], f"cannot be combined with {given[0]}")
    if p.choices is not None and len(p.choices) > MAX_CHOICES:
        raise RequestError("choices", f"at most {MAX_CHOICES}")
    if given and p.min_new_tokens:
        raise RequestError("min_new_tokens", f"cannot be combined with {given[0]}, which says when the output ends")
