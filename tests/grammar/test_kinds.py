"""Every kind of grammar: what it takes, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.grammar_suite import Feeder
from sgjax.grammar.sources import ANY_JSON
from sgjax.sampling_params import SamplingParams
from sgjax.text import Tokenizer

XML = r"""
root ::= element
element ::= "<note>" item* "</note>"
item ::= "<to>" text "</to>" | "<body lang=\"" lang "\">" (text | item)* "</body>"  # nested
lang ::= "en" | "de"
text ::= [^<&]+
"""
CALLS = {
    "type": "structural_tag",
    "structures": [
        {
            "begin": "<function=get_weather>",
            "schema": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "end": "</function>",
        },
        {"begin": "<function=stop>", "schema": {"type": "null"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}


def _call(name: str, schema: Any) -> dict[str, Any]:
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": f'<call>{{"name": "{name}", "args": ', "content": content, "end": "}</call>"}


def _format(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "structural_tag", "format": value}


TAGS = {
    "type": "tags_with_separator",
    "tags": [_call("f", {"type": "integer"}), _call("g", {"type": "null"})],
    "separator": "\n",
    "at_least_one": True,
}
THINKING = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"}
F = '<call>{"name": "f", "args": 7}</call>'
G = '<call>{"name": "g", "args": null}</call>'

CASES = [
    ("regex", r"[0-9]{3}-[a-z]+", ["123-abc"], ["12-abc", "123-", "123-abc4", ""]),
    ("regex", "(yes|no)?", ["yes", "no", ""], ["maybe", "yesno"]),
    ("regex", "ü{2}.", ["üü€", "üüx"], ["ü€", "uux"]),
    (
        "choices",
        ["yes", "no", 'a "quoted"\n\\word', "yes, please"],
        ["yes", 'a "quoted"\n\\word', "yes, please"],
        ["y", ""],
    ),
    (
        "json_schema",
        {"type": "object"},
        ["{}", '{"a":[1,2.5,{"b":null}]}'],
        ["[]", "1", '{"a":1', '{"a" :1}', '{"a": 1}'],
    ),
    ("json_schema", ANY_JSON, ["{}", "[]", "1", '"x"', "null"], ["", "x", "{} "]),
    ("json_schema", "true", ["{}", "-1.5e3"], ["tru"]),
    (
        "ebnf",
        XML,
        ["<note></note>", '<note><to>A b</to><body lang="de">x<to>y</to></body></note>'],
        ["<note><to></to></note>"],
    ),
    ("ebnf", 'root ::= a "x"\na ::= [a-z]+', ["abx", "xx"], ["x", "ab"]),
    ("ebnf", 'root ::= "(" root ")" | ""', ["", "((()))"], ["(", "())"]),
    ("ebnf", 'root ::= ("a"*)* ("b"?)+', ["", "aab"], ["ba", "c"]),
    ("ebnf", 'root ::= (pair{2})* "."\npair ::= "(" pair? ")"', [".", "()(())."], ["()."]),
    ("ebnf", r'root ::= "\u00e9\x41" [\u0041-\u0043]{2}', ["éAAB"], ["éAAD", "eA"]),
    ("ebnf", 'start: "a"+ /[0-9]/', ["aa7"], ["7"]),
    (
        "structural_tag",
        CALLS,
        [
            "",
            "No call at all, not even of a <function or </function>.",
            'I look.\n<function=get_weather>{"city":"Ulm"}</function> Then\n<function=stop>null</function>',
            '<function=get_weather>{"city":"<function="}</function>',
        ],
        ["<function=", "<function=other>{}</function>", "a <function=get_weather>{}</function>", "<function=stop>null"],
    ),
    ("structural_tag", _format(TAGS), [F, f"{F}\n{G}\n{F}"], ["", "a", f"{F}{G}", f"{F}\n", F[:-1], f"{F} ok"]),
    ("structural_tag", _format({**TAGS, "stop_after_first": True}), [F, G], ["", f"{F}\n{G}"]),
    ("structural_tag", _format({**TAGS, "at_least_one": False}), ["", F, f"{F}\n{G}"], ["a"]),
    (
        "structural_tag",
        _format({"type": "sequence", "elements": [THINKING, {"type": "const_string", "value": "\n"}, TAGS]}),
        [f"</think>\n{F}", f"I think <call>.</thin </think>\n{F}\n{G}"],
        ["", F, f"Hm</think>{F}", "Hm</think>\nNo"],
    ),
    (
        "structural_tag",
        _format({"type": "or", "elements": [TAGS, {"type": "json_schema", "json_schema": {"type": "integer"}}]}),
        [F, f"{F}\n{F}", "12"],
        ["", "x", f"12{F}"],
    ),
    (
        "structural_tag",
        _format({"type": "triggered_tags", "triggers": ["<call>"], "tags": TAGS["tags"]}),
        ["", "Free", f"Free {F} and {G}"],
        ["Free <call>", "<call>{}"],
    ),
    (
        "structural_tag",
        _format({"type": "triggered_tags", "triggers": ["<call>"], "tags": TAGS["tags"], "at_least_one": True}),
        [F, f"Free {F} and"],
        ["", "Free"],
    ),
    (
        "structural_tag",
        _format({"type": "triggered_tags", "triggers": ["<call>"], "tags": TAGS["tags"], "stop_after_first": True}),
        ["", "Free", F, f"Free {F}"],
        ["Free <call>", f"{F} and", f"{F}{F}"],
    ),
]


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_grammar_takes_exactly_its_texts(
    kind: str, value: Any, good: list[str], bad: list[str], compile_: Any, feeder: Feeder
) -> None:
    grammar = compile_(kind, value)
    for text in good:
        assert feeder.by_masks(grammar, text), text
        assert feeder.by_tokens(grammar, text), text
    for text in bad:
        assert not feeder.takes(grammar, text), text


def test_spec_of_sampling_parameters_compiles(compiler: Any, feeder: Feeder) -> None:
    spec = SamplingParams(choices=("left", "right")).grammar
    assert spec is not None
    assert feeder.takes(compiler.compile(spec).result(), "right")


def test_layout_is_the_authors_choice(compile_: Any, feeder: Feeder) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    spaced = compile_("json_schema", schema | {"x-guidance": {"item_separator": ", ", "key_separator": ": "}})
    assert feeder.takes(spaced, '{"a": 1, "b": 2}')
    assert not feeder.takes(spaced, '{"a":1,"b":2}')
    flexible = compile_("json_schema", schema | {"x-guidance": {"whitespace_flexible": True}})
    assert feeder.takes(flexible, '{"a" : 1,\n "b":2}')


def test_a_special_token_can_be_a_trigger(compile_: Any, tokenizer: Tokenizer) -> None:
    special = tokenizer.id_to_token(4)
    assert special is not None
    assert 4 in tokenizer.special_token_ids
    structure = {"begin": special + "call ", "schema": {"type": "integer"}, "end": special}
    matcher = compile_(
        "structural_tag", {"type": "structural_tag", "structures": [structure], "triggers": [special]}
    ).matcher()
    for token_id in [*tokenizer.encode("Free text", False), 4, *tokenizer.encode("call ", False)]:
        assert matcher.accept(token_id)
    assert not matcher.is_accepting
    assert all(map(matcher.accept, [*tokenizer.encode("17", False), 4]))
    assert matcher.is_accepting


def test_a_call_may_follow_a_call(compile_: Any, feeder: Feeder) -> None:
    call = '<function=get_weather>{"city":"Oslo"}</function>'
    assert feeder.takes(compile_("structural_tag", CALLS), call * 3)
    assert not feeder.takes(compile_("structural_tag", CALLS), call + "<function=")


def test_json_without_a_schema_is_never_spaced_endlessly(compile_: Any, tokenizer: Tokenizer) -> None:
    matcher = compile_("json_schema", {"type": "object"}).matcher()
    assert all(map(matcher.accept, tokenizer.encode(json.dumps({}), False)))
    assert matcher.is_stopped
