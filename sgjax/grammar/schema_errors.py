"""Where in a schema llguidance found a fault: it does not say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import llguidance

from sgjax.grammar.schema import Rewritten
from sgjax.grammar.schema_path import child

SEARCH_S = 2.0  # a deeper search is not worth a worker's time


def locate(rewritten: Rewritten, limits: llguidance.LLParserLimits) -> tuple[str, str] | None:
    """The JSON pointer, in the given schema, of the innermost keyword without which the schema would compile.

    With llguidance's complaint about it; None when it has none.
    """
    defs = rewritten.schema.get("$defs", {})
    deadline = time.monotonic() + SEARCH_S

    def fault(node: Any) -> str:
        if time.monotonic() > deadline:
            return ""
        document = {**node, "$defs": defs} if isinstance(node, dict) else {"enum": []}
        return check(document, limits)

    node, seen = rewritten.schema, set()
    complaint = fault(node)
    if not complaint:
        return None
    unsatisfiable = _is_unsatisfiable(complaint)
    path = "#"
    while isinstance(node, dict) and id(node) not in seen:
        seen.add(id(node))
        path = rewritten.paths.get(id(node), path)
        for where, sub in _members(node, defs, path):
            message = fault(sub)
            # What cannot be satisfied is a fault only where it is required.
            if message and (unsatisfiable or not _is_unsatisfiable(message)):
                path, node, complaint = where, sub, message
                break
    if isinstance(node, dict):
        keys = sorted((key for key in node if key != "$defs"), key=lambda key: key == "type")
        for key in keys:
            if not fault({other: value for other, value in node.items() if other != key}):
                return child(path, key), complaint
    return path, complaint


def check(schema: Mapping[str, Any], limits: llguidance.LLParserLimits) -> str:
    """llguidance's complaint about a schema, empty when there is none."""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return str(error)
    return llguidance.LLMatcher.validate_grammar(grammar, limits=limits)


def _is_unsatisfiable(message: str) -> bool:
    return message.startswith(("Unsatisfiable", "required"))


def _members(node: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        where = child(path, key)
        if key == "$ref":
            yield path, defs.get(value.rpartition("/")[2], True)
        elif key in ("properties", "patternProperties"):
            for name, sub in value.items():
                yield child(where, name), sub
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            for i, sub in enumerate(value):
                yield child(where, i), sub
        elif key in ("items", "additionalProperties"):
            yield where, value
