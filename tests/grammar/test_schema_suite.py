"""The JSON-Schema-Test-Suite's required tests of draft 2020-12: nothing is accepted wrongly."""

from __future__ import annotations

import dataclasses

from benchmarks.grammar_suite import Feeder, run_suite
from sgjax.grammar import GrammarCompiler

# By `python -m benchmarks.grammar suite`. Supporting more is welcome: raise them. Less is a regression.
TOTAL = {"schemas": 368, "refused": 180, "accepted": 476, "rejected": 247, "not_generated": 10, "untested": 524}
# The files of keywords that are enforced throughout.
COMPLETE = (
    *("additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum", "exclusiveMinimum", "items"),
    *("maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum"),
    *("dependentRequired", "pattern", "prefixItems", "properties", "required", "type"),
)


def test_suite(compiler: GrammarCompiler, feeder: Feeder) -> None:
    table, _, wrong = run_suite(compiler, feeder)
    assert wrong == []
    rows = [dataclasses.asdict(counts) for counts in table.values()]
    assert {key: sum(row[key] for row in rows) for key in TOTAL} == TOTAL
    for name in COMPLETE:
        counts = table[name]
        assert counts.refused <= 2, name
        assert counts.not_generated == 0, name
