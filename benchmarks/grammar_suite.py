"""Runs the JSON-Schema-Test-Suite through the grammar: what is compiled, refused, accepted.

The required tests of draft 2020-12, of Julian Berman and contributors (MIT, see tests/grammar/data). An instance is
written as text and fed token by token through `Matcher.fill` and `Matcher.accept`.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sgjax.grammar import Grammar, GrammarCompiler, Matcher
from sgjax.sampling_params import GrammarSpec
from sgjax.text import Tokenizer
from sgjax.types import RequestError

SUITE = Path(__file__).parent.parent / "tests" / "grammar" / "data" / "json_schema_suite_2020_12.json.gz"
MAX_SPELLINGS = 200  # of one instance: a grammar fixes the order of properties


@dataclasses.dataclass(slots=True)
class Counts:
    """Outcomes of one keyword's file.

    Attributes:
      schemas, refused: schemas in all, and those refused.
      accepted, rejected: valid instances accepted and invalid ones rejected, of the compiled schemas.
      not_generated: valid instances that no spelling tried can produce.
      wrongly_accepted: invalid ones that are accepted.
      untested: instances of refused schemas.
    """

    schemas: int = 0
    refused: int = 0
    accepted: int = 0
    rejected: int = 0
    not_generated: int = 0
    wrongly_accepted: int = 0
    untested: int = 0


class Feeder:
    """Feeds texts to grammars, as a sampler would that wants to write exactly this text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self._ids: dict[bytes, int] = {}
        for token_id in range(tokenizer.vocab_size):
            if token_id not in tokenizer.special_token_ids:
                self._ids.setdefault(tokenizer.token_bytes(token_id), token_id)
        self._max_len = max(map(len, self._ids))

    def takes(self, grammar: Grammar, text: str) -> bool:
        """Whether the grammar takes the text as a whole, by its masks or by the tokenizer's own tokens."""
        return self.by_masks(grammar, text) or self.by_tokens(grammar, text)

    def by_masks(self, grammar: Grammar, text: str) -> bool:
        """Always the longest token that the mask allows and that goes on with the text."""
        matcher, data = grammar.matcher(), text.encode()
        while data:
            matcher.fill(self._mask)
            token_id = self._next(data)
            if token_id is None:
                return False
            assert matcher.accept(token_id), "a token of the mask was not taken"
            data = data[len(self._tokenizer.token_bytes(token_id)) :]
        return self._may_end(matcher)

    def by_tokens(self, grammar: Grammar, text: str) -> bool:
        """The tokens of the text as the tokenizer writes it: also where the mask allows the forced tokens alone."""
        matcher = grammar.matcher()
        return all(map(matcher.accept, self._tokenizer.encode(text, False))) and self._may_end(matcher)

    def allows(self, token_id: int) -> bool:
        """Whether the mask filled last allows a token."""
        return bool(self._mask[token_id // 32] >> (token_id % 32) & 1)

    def _next(self, data: bytes) -> int | None:
        for length in range(min(self._max_len, len(data)), 0, -1):
            token_id = self._ids.get(data[:length])
            if token_id is not None and self.allows(token_id):
                return token_id
        return None

    def _may_end(self, matcher: Matcher) -> bool:
        matcher.fill(self._mask)
        end = self._tokenizer.eos_token_ids[0]
        assert matcher.is_accepting == self.allows(end)
        return matcher.accept(end)


def spellings(value: Any) -> Iterator[str]:
    """Compact texts of a value: with its properties in any order, 1.0 also as 1."""
    if isinstance(value, dict):
        members = [[f"{dumps(key)}:{text}" for text in few(sub)] for key, sub in value.items()]
        for order in itertools.permutations(members):
            for texts in itertools.product(*order):
                yield "{" + ",".join(texts) + "}"
    elif isinstance(value, list):
        for texts in itertools.product(*map(few, value)):
            yield "[" + ",".join(texts) + "]"
    else:
        yield dumps(value)
        if isinstance(value, float) and value.is_integer():
            yield str(int(value))


def few(value: Any) -> list[str]:
    return list(itertools.islice(spellings(value), 6))


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_suite() -> dict[str, list[dict[str, Any]]]:
    """Groups of tests by file: each a schema with instances."""
    return json.loads(gzip.decompress(SUITE.read_bytes()))


def run_suite(compiler: GrammarCompiler, feeder: Feeder) -> tuple[dict[str, Counts], dict[str, int], list[str]]:
    """Counts by file, reasons to refuse with their number, and the instances accepted wrongly in words."""
    table: dict[str, Counts] = {}
    reasons: dict[str, int] = {}
    wrong: list[str] = []
    for name, groups in read_suite().items():
        counts = table[name] = Counts()
        for group in groups:
            counts.schemas += 1
            try:
                grammar = compiler.compile(GrammarSpec("json_schema", json.dumps(group["schema"]))).result()
            except RequestError as error:
                counts.refused += 1
                counts.untested += len(group["tests"])
                reason = reason_of(error.message)
                reasons[reason] = reasons.get(reason, 0) + 1
                continue
            for test in group["tests"]:
                texts = itertools.islice(spellings(test["data"]), MAX_SPELLINGS)
                accepted = any(feeder.takes(grammar, text) for text in texts)
                if accepted and not test["valid"]:
                    wrong.append(f"{name}: {group['description']}: {test['description']}")
                outcome = {
                    (True, True): "accepted",
                    (True, False): "not_generated",
                    (False, False): "rejected",
                    (False, True): "wrongly_accepted",
                }[test["valid"], accepted]
                setattr(counts, outcome, getattr(counts, outcome) + 1)
    return table, dict(sorted(reasons.items(), key=lambda item: -item[1])), wrong


def reason_of(message: str) -> str:
    """A refusal with the keyword alone of its path, so that like ones are counted together."""
    path, _, reason = message.partition(": ")
    if reason == "not supported":
        return f"{path.rpartition('/')[2]}: {reason}"
    return reason.splitlines()[0].rpartition("' ")[2][:80]
