"""docs/programs_on_the_server.md has every kind of node, event and field, and the limits as they are."""

from __future__ import annotations

from pathlib import Path

from sgjax_server.programs import budget
from sgjax_server.programs.run import ProgramCall
from sgjax_server.schemas.program import MAX_TIMEOUT_S, ProgramRequest

from sgjax.lang import ir, json_codecs, program_json

PAGE = (Path(__file__).parents[2] / "docs" / "programs_on_the_server.md").read_text(encoding="utf-8")


def test_kinds_and_fields() -> None:
    for kind, (_, fields) in program_json._KINDS.items():
        # A choice method draws nothing, so that its temperature is always 0.
        assert {name for name in (kind, *fields) if f"`{name}`" not in PAGE} <= {"temperature"}, kind
    assert [name for name in ProgramRequest.model_fields if f"`{name}`" not in PAGE] == []


def test_limits() -> None:
    counts = (json_codecs.MAX_NODES, json_codecs.MAX_TEXT, budget.MAX_STEPS, ir.MAX_REPEAT, budget.MAX_CHARS)
    for value in (*counts, budget.MAX_VALUE_CHARS, budget.MAX_TOKENS):
        assert f"{value:,}" in PAGE, value
    assert f"nested {json_codecs.MAX_DEPTH} deep" in PAGE
    assert f"names of {json_codecs.MAX_NAME}" in PAGE
    assert f"| {program_json.MAX_STATES} |" in PAGE
    assert f"at most {MAX_TIMEOUT_S:g}, default {ProgramCall.timeout_s:g}" in PAGE
