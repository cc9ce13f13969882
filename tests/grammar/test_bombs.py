"""Grammars made to explode: each is refused, or what it costs is bounded, and others go on."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import pytest

from sgjax.grammar import GrammarCompiler, Matcher
from sgjax.sampling_params import GrammarSpec
from sgjax.text import Tokenizer
from sgjax.types import RequestError
from tests.grammar.conftest import allowed

# Generous for a busy machine: measured are under 1.5 s a compile and 0.15 s a mask.
MAX_COMPILE_S = 20.0
MAX_STEP_S = 3.0


def properties(num: int) -> dict[str, Any]:
    return {f"property number {i}": {"type": "string"} for i in range(num)}


def chain(num: int) -> dict[str, Any]:
    """Definitions that each hold the next one."""
    links = {f"d{i}": {"properties": {"next": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(num)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{num}": {}}}


TWICE = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "object"}}
CROSS = [{"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {}}} for j in range(8)]} for i in range(8)]
LONG_REGEX = "|".join(f".*{chr(97 + i)}.{{{300 + i}}}" for i in range(26))
MANY_RULES = "root ::= r0\n" + "\n".join(f'r{i} ::= "a{i}" r{i + 1} | "b"' for i in range(400)) + '\nr400 ::= "x"'

# The message that refuses, or "" for those that are bounded.
BOMBS: list[tuple[str, str, Any, str]] = [
    ("nested quantifiers", "regex", "(a{1,1000}){1,1000}", ""),
    ("deeper quantifiers", "regex", "(((a{1,1000}b?){1,1000}c?){1,1000}d?){1,1000}", ""),
    ("quantified classes", "regex", r"(\w{1,1000}\p{L}){1,1000}", ""),
    ("exponential automaton", "regex", "(a|b)*a(a|b){40}", ""),
    ("many exponential automata", "regex", LONG_REGEX, ""),
    ("optional and again", "regex", "(a?){1000}a{1000}", ""),
    ("parentheses", "regex", "(" * 20_000 + "a" + ")" * 20_000, "nest"),
    ("long regex", "regex", "a" * 500_000, "too complex: more than"),
    ("null byte", "regex", "a\0b", ""),
    ("optional properties", "json_schema", {"type": "object", "properties": properties(10_000)}, "too complex"),
    ("most optional properties", "json_schema", {"type": "object", "properties": properties(450)}, ""),
    (
        "required properties",
        "json_schema",
        {"type": "object", "properties": properties(5_000), "required": list(properties(5_000))},
        "",
    ),
    ("too many schemas", "json_schema", {"type": "array", "prefixItems": [{}] * 30_000}, "too complex"),
    ("huge enum", "json_schema", {"enum": [f"value number {i}" for i in range(20_000)]}, ""),
    ("many constants", "json_schema", {"anyOf": [{"const": i} for i in range(5_000)]}, ""),
    ("chain of references", "json_schema", chain(5_000), "too complex: more than"),
    ("doubling references", "json_schema", {"$ref": "#/$defs/d0", "$defs": TWICE}, ""),
    ("combined alternatives", "json_schema", {"allOf": CROSS}, "too complex"),
    ("deep text", "json_schema", '{"items":' * 10_000 + "{}" + "}" * 10_000, "nested too deeply"),
    ("deep schema", "json_schema", '{"items":' * 130 + "{}" + "}" * 130, "too complex: more than"),
    ("deep constant", "json_schema", '{"const":' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
    ("deep brackets", "json_schema", "[" * 200_000, "nested too deeply"),
    ("long string", "json_schema", {"type": "string", "minLength": 1_000_000}, ""),
    ("longer string", "json_schema", {"type": "string", "minLength": 10**9}, "too complex"),
    ("many items", "json_schema", {"type": "array", "minItems": 10**9}, "too complex"),
    ("arrays of arrays", "json_schema", {"maxItems": 10_000, "items": {"maxItems": 10_000}}, ""),
    ("half a surrogate pair", "json_schema", r'{"const": "\ud800"}', "json_schema: "),
    (
        "pattern of a length",
        "json_schema",
        {"type": "string", "pattern": "^[a-z]+( [a-z]+)*$", "minLength": 9000},
        "#/",
    ),
    ("left recursion", "ebnf", 'root ::= root "a" | "a"', ""),
    ("hidden left recursion", "ebnf", 'root ::= x root "a" | "a"\nx ::= "b"?', ""),
    ("ambiguity", "ebnf", 'root ::= s\ns ::= s s | s s s | "a" | ""', ""),
    ("ambiguous words", "ebnf", "root ::= a a a a a a a a\na ::= b*\nb ::= [a-z]* [a-z]* | [a]", ""),
    ("ebnf parentheses", "ebnf", "root ::= " + "(" * 5_000 + '"a"' + ")" * 5_000, "nested too deeply"),
    ("many rules", "ebnf", MANY_RULES, ""),
    ("too many rules", "ebnf", "\n".join(f'r{i} ::= "a"' for i in range(501)), "too complex: more than 500"),
    ("long ebnf", "ebnf", 'root ::= "' + "a" * 100_000 + '"', "too complex: more than"),
    ("choices", "choices", [f"choice {i} " + "x" * 200 for i in range(1024)], ""),
    ("long choices", "choices", ["y" * 500_000], "too complex: more than"),
]


@pytest.mark.parametrize(("kind", "value", "message"), [bomb[1:] for bomb in BOMBS], ids=[bomb[0] for bomb in BOMBS])
def test_bomb_is_refused_or_bounded(kind: Any, value: Any, message: str, compiler: GrammarCompiler) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    start = time.perf_counter()
    future = compiler.compile(GrammarSpec(kind, text))
    if message:
        with pytest.raises(RequestError, match=re.escape(message)) as caught:
            future.result(60)
        assert len(str(caught.value)) < 2_000
    else:
        spend(future.result(60).matcher())
    assert time.perf_counter() - start < MAX_COMPILE_S + MAX_STEP_S


def spend(matcher: Matcher) -> None:
    """Walks at random; every step is bounded, and a limit is an error, never an exception."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        start = time.perf_counter()
        ids = allowed(matcher)
        matcher.forced()
        taken = matcher.accept(int(rng.choice(ids)))
        assert time.perf_counter() - start < MAX_STEP_S
        if matcher.error is not None:
            assert not matcher.error.startswith("<")
            assert set(allowed(matcher)) == matcher.vocabulary.eos_token_ids
            return
        assert taken
        if matcher.is_stopped:
            return


def test_limit_at_a_step_is_an_error_in_words(compile_: Any, tokenizer: Tokenizer) -> None:
    matcher = compile_("regex", r"(\w{1,1000}\p{L}){1,1000}").matcher()
    token_id = tokenizer.encode("a", False)[0]
    num_steps = 0
    while matcher.error is None and num_steps < 2_000:
        allowed(matcher)
        matcher.accept(token_id)
        num_steps += 1
    assert matcher.error is None or matcher.error.startswith("too complex")
