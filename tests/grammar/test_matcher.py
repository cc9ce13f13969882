"""The state of one sequence: masks, forced tokens, the end, and going back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgjax.grammar import Grammar, Matcher, fill_masks
from sgjax.text import Tokenizer
from tests.grammar.conftest import OTHER_EOS, VOCAB_SIZE, allowed

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"enum": ["Paris", "Rome"]}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
GRAMMARS: list[tuple[str, Any]] = [
    ("json_schema", PERSON),
    ("json_schema", {"type": "array", "items": {"type": ["number", "null", "boolean"]}}),
    ("regex", r"(ab|a(bc)+)*d{2,4}"),
    ("ebnf", 'root ::= "<" root* ">" | [a-c]+'),
    ("choices", ["red", "reddish", "green", "blue and green"]),
]


@pytest.fixture(params=range(len(GRAMMARS)), ids=lambda i: f"{GRAMMARS[i][0]}-{i}")
def grammar(request: pytest.FixtureRequest, compile_: Any) -> Grammar:
    return compile_(*GRAMMARS[request.param])


def walk(grammar: Grammar, rng: np.random.Generator, num_steps: int) -> tuple[Matcher, list[int]]:
    """A random way through a grammar, without its end."""
    matcher, token_ids = grammar.matcher(), []
    for _ in range(num_steps):
        ids = [token_id for token_id in allowed(matcher) if token_id not in matcher.vocabulary.eos_token_ids]
        if not ids:
            break
        token_ids.append(int(rng.choice(ids)))
        assert matcher.accept(token_ids[-1])
    return matcher, token_ids


def test_mask_is_what_the_bytes_allow(grammar: Grammar, tokenizer: Tokenizer) -> None:
    """Brute force: where nothing is forced, the mask holds exactly the tokens that are accepted."""
    rng = np.random.default_rng(1)
    sample = rng.choice(tokenizer.vocab_size, 3000, replace=False).tolist()
    for num_steps in range(6):
        matcher, _ = walk(grammar, rng, num_steps)
        ids = allowed(matcher)
        takes = []
        for token_id in {*sample, *ids}:
            if matcher.accept(token_id):
                takes.append(token_id)
                matcher.rollback(1)
        assert set(ids) <= set(takes)
        if len(ids) > 1:  # of forced bytes the mask allows the canonical token alone
            assert set(ids) == set(takes)
        assert max(ids) < tokenizer.vocab_size < VOCAB_SIZE


def test_refused_token_changes_nothing(grammar: Grammar) -> None:
    matcher, _ = walk(grammar, np.random.default_rng(2), 3)
    before = allowed(matcher)
    for token_id in (5, VOCAB_SIZE - 1, VOCAB_SIZE, -1, 10**9):
        assert not matcher.accept(token_id)
    assert matcher.error is None
    assert allowed(matcher) == before


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rollback_restores_the_mask(data: st.DataObject, compile_: Any) -> None:
    grammar = compile_(*data.draw(st.sampled_from(GRAMMARS)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    matcher = grammar.matcher()
    masks: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        masks.append(allowed(matcher))
        assert matcher.accept(int(rng.choice(masks[-1])))
    num_back = data.draw(st.integers(0, len(masks)))
    matcher.rollback(num_back)
    if num_back:
        assert allowed(matcher) == masks[-num_back]
    with pytest.raises(ValueError, match="cannot take"):
        matcher.rollback(len(masks) - num_back + 1)


def test_copies_do_not_disturb_each_other(grammar: Grammar) -> None:
    first = allowed(grammar.matcher())
    walk(grammar, np.random.default_rng(3), 8)
    assert allowed(grammar.matcher()) == first


def test_forced_tokens_are_the_tokenizers_own(compile_: Any, tokenizer: Tokenizer) -> None:
    grammar = compile_("json_schema", PERSON)
    rng = np.random.default_rng(4)
    num_forced = 0
    for _ in range(30):
        matcher, token_ids, spans = grammar.matcher(), [], []
        while not matcher.is_stopped and len(token_ids) < 60:
            if forced := matcher.forced():
                assert allowed(matcher) == forced[:1]  # masks and forced tokens agree
                assert all(map(matcher.accept, forced))
                spans.append((len(token_ids), forced))
                token_ids += forced
                num_forced += len(forced)
                continue
            ids = allowed(matcher)
            quotes = [token_id for token_id in ids if tokenizer.token_bytes(token_id).endswith(b'"')]
            token_ids.append(int(rng.choice(quotes if quotes and rng.random() < 0.5 else ids)))
            assert matcher.accept(token_ids[-1])
        text = tokenizer.decode(token_ids, skip_special_tokens=False)
        prefix = tokenizer.decode(token_ids[: spans[0][0] + len(spans[0][1])])
        assert tokenizer.encode(prefix, False) == spans[0][1]
        for start, forced in spans:  # each span alone is what the tokenizer writes for its text
            assert tokenizer.encode(tokenizer.decode(forced), False) == forced, (text, start)
    assert num_forced > 200


def test_forced_does_not_advance_and_ends(compile_: Any, tokenizer: Tokenizer) -> None:
    matcher = compile_("regex", "hello world").matcher()
    assert matcher.forced() == matcher.forced() == tokenizer.encode("hello world", False)
    assert all(map(matcher.accept, matcher.forced()))
    assert matcher.forced() == []
    assert matcher.is_stopped
    assert matcher.is_accepting


def test_every_eos_ends_and_can_be_taken_back(compile_: Any, tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_token_ids[0]
    matcher = compile_("regex", "(ab)+").matcher()
    assert not matcher.accept(eos)
    assert not matcher.is_accepting
    assert matcher.accept(tokenizer.encode("ab", False)[0])
    open_ids = allowed(matcher)
    assert {eos, OTHER_EOS} < set(open_ids)
    for token_id in (eos, OTHER_EOS):
        assert matcher.is_accepting
        assert not matcher.is_stopped
        assert matcher.accept(token_id)
        assert matcher.is_stopped
        assert matcher.is_accepting
        assert allowed(matcher) == sorted((eos, OTHER_EOS))
        assert matcher.accept(eos)  # the engine sees the end one step late
        matcher.rollback(2)
        assert allowed(matcher) == open_ids


def test_closed_grammar_allows_eos_alone(compile_: Any, tokenizer: Tokenizer) -> None:
    matcher = compile_("choices", ["stop"]).matcher()
    token_ids = tokenizer.encode("stop", False)
    assert all(map(matcher.accept, token_ids))
    assert matcher.is_stopped
    assert matcher.error is None
    assert allowed(matcher) == sorted((*tokenizer.eos_token_ids, OTHER_EOS))
    matcher.rollback(len(token_ids))
    assert not matcher.is_stopped
    assert all(map(matcher.accept, token_ids))


def test_fill_masks_equals_fill(compile_: Any, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(5)
    rows = [(walk(compile_(*GRAMMARS[i % len(GRAMMARS)]), rng, i)[0], (7 * i) % 23) for i in range(20)]
    ended = compile_("regex", "a?").matcher()
    assert ended.accept(tokenizer.eos_token_ids[0])
    rows.append((ended, 23))
    masks = np.full((25, -(-VOCAB_SIZE // 32)), 7, np.int32)
    fill_masks(rows, masks)
    for matcher, row in rows:
        mask = np.zeros_like(masks[row])
        matcher.fill(mask)
        np.testing.assert_array_equal(masks[row], mask)
    untouched = set(range(25)) - {row for _, row in rows}
    assert untouched
    assert all((masks[row] == 7).all() for row in untouched)
    fill_masks([], masks)
    fill_masks(rows[:1], masks)


def test_masks_of_another_shape_are_refused(compile_: Any) -> None:
    matcher = compile_("regex", "a").matcher()
    width = -(-VOCAB_SIZE // 32)
    for mask in (np.zeros(width, np.int64), np.zeros(2 * width, np.int32)[::2], np.zeros(width - 1, np.int32)):
        with pytest.raises(ValueError, match=r"mask|buffer"):
            matcher.fill(mask)
    with pytest.raises(ValueError, match="buffer"):
        fill_masks([(matcher, 0)], np.zeros((1, width + 1), np.int32))
    with pytest.raises(ValueError, match="out of bounds"):
        fill_masks([(matcher, 1), (compile_("regex", "b").matcher(), 0)], np.zeros((1, width), np.int32))


def test_long_json_walk_stays_valid(compile_: Any, tokenizer: Tokenizer) -> None:
    """What random tokens of the masks write is JSON of the schema's shape, whenever the walk ends."""
    grammar = compile_("json_schema", {"type": "array", "items": PERSON, "maxItems": 2})
    rng = np.random.default_rng(6)
    num_ended = 0
    for _ in range(20):
        matcher, token_ids = walk(grammar, rng, 30)
        assert matcher.error is None
        if matcher.is_accepting:
            num_ended += 1
            for person in json.loads(tokenizer.decode(token_ids, skip_special_tokens=False)):
                assert list(person) == list(PERSON["properties"])
    assert num_ended
