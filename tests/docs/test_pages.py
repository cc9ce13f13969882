"""What the pages name is there: files, flags, routes, keywords, limits."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.flags import _SGLANG_FLAGS, add_flags, add_sglang_flags
from sgjax_server.host import EngineHost
from sgjax_server.schemas.structured import GrammarFields, StructuredOutputs

from sgjax.config import EngineConfig
from sgjax.grammar import gbnf, schema, schema_values, sources, structural_format
from sgjax.sampling_params import GRAMMAR_KINDS, MAX_CHOICES, MAX_GRAMMAR_LEN

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])


def section(page: str, title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    text = (DOCS / page).read_text(encoding="utf-8")
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert level is not None, title
    return re.split(rf"^#{{1,{len(level[1])}}} ", text[level.end() :], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_flags_of_sglang() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", section("from_sglang.md", "Launch flags")))
    parser = argparse.ArgumentParser()
    add_flags(parser, ServerConfig, "server")
    add_flags(parser, EngineConfig, "engine")
    add_sglang_flags(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    assert named - known == set()
    refused = {name for flag in _SGLANG_FLAGS for name in flag.names}
    assert {"--quantization", "--lora-paths"} <= refused


def test_routes() -> None:
    table = section("from_sglang.md", "Routes")
    app = create_app(EngineHost(None), ServerConfig())  # type: ignore[arg-type]
    paths = {path.split("{")[0].rstrip("/") for path in app.openapi()["paths"]}
    assert paths <= set(re.findall(r"`(/[a-z_/0-9]+)`", table))


def test_routes_of_each_api() -> None:
    table = section("apis.md", "Routes")
    app = create_app(EngineHost(None), ServerConfig())  # type: ignore[arg-type]
    assert set(app.openapi()["paths"]) == set(re.findall(r"`(/[^`]+)`", table.partition("\n\n`/openapi.json`")[0]))


def test_keywords_of_schemas() -> None:
    rows = [row for row in section("structured_output.md", "JSON Schema").splitlines() if row.startswith("| `")]
    refused = {word for row in rows if "refused, unless" in row for word in re.findall(r"`(\$?\w+)`", row)}
    named = {word for row in rows for word in re.findall(r"`(\$?[\w-]+)`", row)}
    assert refused == set(schema._UNSUPPORTED)
    assert set(schema_values.PLAIN) | schema_values.FORMATS <= named


def test_fields_of_requests() -> None:
    asked = section("structured_output.md", "How to ask")
    fields = {*GrammarFields.ALIASES, *GRAMMAR_KINDS, "response_format", "structured_outputs"}
    fields |= {field.alias or name for name, field in StructuredOutputs.model_fields.items()}
    assert {field for field in fields if field not in asked} == set()


def test_limits() -> None:
    limits = section("structured_output.md", "Limits")
    values = (
        *(MAX_GRAMMAR_LEN, MAX_CHOICES, sources.MAX_REGEX_LEN, sources.MAX_CHOICES_LEN, gbnf.MAX_LEN, gbnf.MAX_RULES),
        *(schema.MAX_DEPTH, schema.MAX_SUBSCHEMAS, schema.MAX_OPTIONAL, schema_values.MAX_COUNT, schema_values.MAX_LEN),
        structural_format.MAX_TAGS,
    )
    for value in values:
        assert f"{value:,}" in limits, value
