"""What is refused, and with which words and place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.grammar_suite import Feeder
from sgjax.types import RequestError

DRAFT_4 = {"$schema": "http://json-schema.org/draft-04/schema#"}
DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
SCHEMAS = [
    # not implemented
    ({"properties": {"a": {"not": {"type": "string"}}}}, "#/properties/a/not: not supported"),
    ({"properties": {"a/b~c": {"if": {}, "then": {}}}}, "#/properties/a~1b~0c/if: not supported"),
    ({"items": {"uniqueItems": True}}, "#/items/uniqueItems: not supported"),
    ({"contains": {}}, "#/contains: not supported"),
    ({"propertyNames": {"maxLength": 3}}, "#/propertyNames: not supported"),
    ({"unevaluatedProperties": False}, "#/unevaluatedProperties: not supported"),
    ({"$dynamicRef": "#x"}, "#/$dynamicRef: not supported"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"not": {}}}}}, "#/$defs/a/items/not: not supported"),
    ({"$ref": "https://example.com/a.json"}, "#/$ref: 'https://example.com/a.json' is outside"),
    ({"properties": {"a": {"$id": "b"}}}, "#/properties/a/$id: embedded"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: the alternatives of oneOf overlap"),
    ({"items": {"patternProperties": {"^a": {}, "^ab": {}}}}, "#/items/patternProperties: "),
    ({"dependentSchemas": {"a": {"not": {}}}}, "#/dependentSchemas/a/not: not supported"),
    # malformed
    ({"type": "objct"}, "#/type: 'objct' is no type"),
    ({"type": []}, "#/type: must name"),
    ({"minimum": "x"}, "#/minimum: must be a number"),
    ({"items": {"minLength": -1}}, "#/items/minLength: must be an integer"),
    ({"items": [{}]}, "#/items: must be a schema; a list of schemas is called prefixItems"),
    ({"properties": []}, "#/properties: must be an object"),
    ({"properties": {"a": 3}}, "#/properties/a: a schema must be"),
    ({"anyOf": []}, "#/anyOf: must be a list"),
    ({"required": ["a", 1]}, "#/required/1: must be a string"),
    ({"required": ["a", "a"]}, "#/required: names"),
    ({"multipleOf": 0}, "#/multipleOf: must be above 0"),
    ({"items": {"type": "integer", "multipleOf": 999_999_937}}, "#/items/multipleOf: 999999937 is too complex"),
    ({"enum": []}, "#/enum: must be a list of values"),
    ({"pattern": 1}, "#/pattern: must be a string"),
    ({"$ref": 1}, "#/$ref: must be a string"),
    ({"$ref": "#/$defs/a"}, "#/$ref: '#/$defs/a' is not in this schema"),
    ({"$ref": "#anchor"}, "#/$ref: '#anchor' is not in this schema"),
    ({"$schema": "https://example.com/"}, "#/$schema: "),
    ({"dependentRequired": {"a": "b"}}, "#/dependentRequired/a: must be a list"),
    (DRAFT_4 | {"minimum": 3, "exclusiveMinimum": True}, "#/exclusiveMinimum: must be a number, not True"),
    ([], "#: a schema must be"),
    ('{"type": "object",}', "#: no JSON: "),
    ('{\n"type": ', "line 2, column 9"),
    ('{"minimum": NaN}', "#: NaN is no JSON"),
    ('{"minimum": ' + "9" * 5000 + "}", "#: no JSON that can be read"),
    ('{"properties": {"a": {"const": "\\ud800"}}}', "#/properties/a/const: '\\ud800' is no character"),
    ('{"properties": {"\\udc00": {}}}', "#/properties: '\\udc00' is no character"),
    # of llguidance, with a place
    ({"properties": {"a": {"pattern": "a(?=b)"}}}, "#/properties/a/pattern: regex parse error"),
    ({"items": {"anyOf": [{"type": "null"}, {"pattern": "("}]}}, "#/items/anyOf/1/pattern: regex parse error"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"pattern": "["}}}}, "#/$defs/a/items/pattern: "),
    ({"patternProperties": {"(": {}}}, "#/patternProperties: "),
    # what other dialects read differently
    ({"pattern": "[]a]"}, "#/pattern: the empty class"),
    ({"pattern": "(?s)."}, "#/pattern: "),
    ({"pattern": r"\Aa"}, r"#/pattern: \A is not supported"),
    ({"pattern": r"(a)\1"}, r"#/pattern: \1 is not supported"),
    ({"pattern": r"\x01"}, "#/pattern: the control character"),
    # nothing satisfies it
    ("false", "#: false allows nothing"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "#/minimum: Unsatisfiable"),
    ({"type": "string", "const": 3}, "#/const: Unsatisfiable"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#/allOf: Unsatisfiable"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#: no finite value satisfies it"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#: no finite value satisfies it"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#: no finite value satisfies it"),
    # not exact in llguidance
    ({"const": 2**53 + 1}, "#/const: not supported beyond 2**53"),
    ({"minimum": 2**54}, "#/minimum: not supported above 2**53"),
    ({"enum": ["a", "b\u0000"]}, "#/enum/1: the control character"),
    ({"minProperties": 2}, "#/minProperties: not supported beyond one more"),
    ({"x-guidance": {"lenient": True}}, "#/x-guidance/lenient: no option"),
    ({"x-guidance": {"item_separator": ";"}}, "#/x-guidance/item_separator: not supported"),
]
OTHERS: list[tuple[str, Any, str]] = [
    ("regex", "a(?=b)", "look-around"),
    ("regex", "a|\\", "ends in a backslash"),
    ("regex", "a{2", "unclosed counted repetition"),
    ("regex", r"[^\s\S]", "nothing can be generated: nothing matches it"),
    ("ebnf", 'root ::= "a" | b', "Rule 'b' not found"),
    ("ebnf", 'main ::= "a"', "No 'root' rule found"),
    ("ebnf", 'root ::= "a\nroot2 ::= [a-z', "line 2"),
    ("ebnf", 'root ::= "a" root', "the rule root never ends"),
    ("ebnf", 'root ::= "a" | b\nb ::= b b', "the rule b never ends"),
    ("ebnf", r'root ::= "\ud800"', "is no character"),
    ("ebnf", "start: missing", "missing"),
    ("structural_tag", "[", "#: no JSON"),
    ("structural_tag", {"type": "json"}, "#: must be an object"),
    ("structural_tag", {"type": "structural_tag", "format": {}}, "#/format: the format None is not supported"),
    ("structural_tag", {"type": "structural_tag", "format": {"type": "x"}, "triggers": []}, "#/triggers: cannot be"),
    (
        "structural_tag",
        {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "any_text"}] * 2}},
        "#/format/elements/0: free text must come last",
    ),
    (
        "structural_tag",
        {
            "type": "structural_tag",
            "format": {
                "type": "tag",
                "begin": "<",
                "end": ">",
                "content": {"type": "json_schema", "json_schema": {"not": {}}},
            },
        },
        "#/format/content/json_schema/not: not supported",
    ),
    ("structural_tag", {"type": "structural_tag", "structures": [], "triggers": ["a"]}, "#/structures: must be a list"),
    ("structural_tag", {"type": "structural_tag", "trigger": ["a"]}, "#/trigger: not known here; the keys are type, "),
    (
        "structural_tag",
        {"type": "structural_tag", "structures": [{"begin": "a", "shema": {}, "end": ""}], "triggers": ["a"]},
        "#/structures/0/shema: not known here",
    ),
    (
        "structural_tag",
        {"type": "structural_tag", "format": {"type": "or", "elements": [{"type": "any_text", "excludes": []}]}},
        "#/format/elements/0/excludes: not known here; the keys are type",
    ),
    (
        "structural_tag",
        {
            "type": "structural_tag",
            "format": {"type": "triggered_tags", "triggers": ["a"], "tags": [{"begin": "a", "stop": ""}]},
        },
        "#/format/tags/0/stop: not known here; the keys are type, begin, content, end",
    ),
]


@pytest.mark.parametrize(("schema", "message"), SCHEMAS, ids=[message for _, message in SCHEMAS])
def test_schema_is_refused_with_the_keywords_path(schema: Any, message: str, compile_: Any) -> None:
    with pytest.raises(RequestError) as caught:
        compile_("json_schema", schema)
    assert caught.value.field == "json_schema"
    assert message in caught.value.message


@pytest.mark.parametrize("keys", [("items",), ("properties", "a")])
def test_brackets_are_counted(keys: tuple[str, ...], compile_: Any) -> None:
    def nested(num_brackets: int) -> Any:
        schema: Any = {"type": "null"}
        for _ in range(num_brackets // len(keys)):
            for key in reversed(keys):
                schema = {key: schema}
        return schema

    compile_("json_schema", nested(120))
    with pytest.raises(RequestError, match="more than 120 brackets"):
        compile_("json_schema", nested(122))


@pytest.mark.parametrize(("kind", "value", "message"), OTHERS, ids=[message for _, _, message in OTHERS])
def test_other_grammar_is_refused(kind: str, value: Any, message: str, compile_: Any) -> None:
    with pytest.raises(RequestError) as caught:
        compile_(kind, value)
    assert caught.value.field == kind
    assert message in caught.value.message


def test_structural_tag_names_the_keyword_within_its_schema(compile_: Any) -> None:
    structures = [
        {"begin": "<a>", "schema": {}, "end": ""},
        {"begin": "<b>", "schema": {"items": {"pattern": "("}}, "end": ""},
    ]
    tag = {"type": "structural_tag", "structures": structures, "triggers": ["<"]}
    with pytest.raises(RequestError, match="#/structures/1/schema/items/pattern: regex parse error"):
        compile_("structural_tag", tag)
    structures[1] = {"begin": "b", "end": ""}
    with pytest.raises(RequestError, match="#/structures/1/begin: 'b' starts with none"):
        compile_("structural_tag", tag)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # a property named like a keyword
        (
            {"type": "object", "properties": {"not": {"type": "null"}}, "required": ["not"]},
            ['{"not":null}'],
            ['{"not":1}'],
        ),
        # annotations and unknown formats
        ({"title": "T", "deprecated": True, "x-note": 1, "type": "integer", "format": "int32"}, ["3"], ['"3"']),
        ({"type": "string", "format": "uri-template"}, ['"{"'], ["1"]),
        # older drafts
        (
            DRAFT_7 | {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
            ["[null]", "[]"],
            ["[1]", "[null,1]"],
        ),
        (DRAFT_4 | {"type": "integer", "minimum": 3, "exclusiveMinimum": False}, ["3"], ["2"]),
        (
            {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
            ['{"a":1,"b":2}', '{"b":1}'],
            ['{"a":1}', '{"c":1}'],
        ),
        # llguidance takes these for others when it reads them itself
        ({"prefixItems": [{"type": "null"}], "additionalItems": False}, ["[null,1]"], ["[1]"]),
        (
            {"type": "object", "properties": {'a"b': {"type": "null"}}},
            ['{"a\\"b":null}'],
            ['{"a\\u0022b":1}', '{"a\\"b":1}'],
        ),
        (
            {"type": "object", "properties": {"a\nb": {"type": "null"}}},
            ['{"a\\nb":null}'],
            ['{"a\\u000ab":1}', '{"a\\nb":1}'],
        ),
        ({"pattern": "^.$", "type": "string"}, ['"a"'], ['"\\r"', '"\u2028"', '""']),
        ({"pattern": r"^\S$", "type": "string"}, ['"a"', '"\u0085"'], ['"\ufeff"', '" "']),
        ({"pattern": r"^[a&&b]+$", "type": "string"}, ['"a&"'], ['"c"']),
        ({"pattern": r"^[[\s]$", "type": "string"}, ['"["', '" "'], ['"a"']),
        ({"pattern": r"^[^\x00-\x1f]$", "type": "string"}, ['"a"'], ['"\\n"']),
        ({"type": "integer", "maximum": 2**63}, ["9007199254740992"], ["9007199254740993"]),
        ({"const": None}, ["null"], ["1"]),
        ({"const": 1.0}, ["1"], ["2"]),
        ({"minLength": 2.0, "type": "string"}, ['"ab"'], ['"a"']),
        # references
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, ["null"], ["1"]),
        (
            {
                "$id": "http://x.y/z.json",
                "items": {"$ref": "z.json#n"},
                "type": "array",
                "$defs": {"n": {"$anchor": "n", "type": "null"}},
            },
            ["[null]"],
            ["[1]"],
        ),
        (
            {
                "type": "object",
                "properties": {"next": {"$ref": "#"}, "loop": {"$ref": "#/$defs/loop"}},
                "additionalProperties": False,
                "$defs": {"loop": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/loop"}}},
            },
            ['{"next":{"next":{}}}'],
            ['{"loop":[', '{"next":1}'],
        ),
    ],
)
def test_schema_is_enforced(schema: Any, good: list[str], bad: list[str], compile_: Any, feeder: Feeder) -> None:
    grammar = compile_("json_schema", schema)
    for text in good:
        assert feeder.takes(grammar, text), text
    for text in bad:
        assert not feeder.takes(grammar, text), text


def test_a_keyword_is_known_as_such_wherever_schemas_are(compile_: Any) -> None:
    """Values are no schemas."""
    value = {"not": {}, "$ref": "nowhere", "type": "nothing"}
    compile_(
        "json_schema", json.dumps({"default": value, "examples": [value], "const": value, "$defs": {"a": {"not": 1}}})
    )
