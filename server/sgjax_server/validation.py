"""Pydantic's findings about a body in plain words, with the names that the client wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_REASONS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
_MAX_LINES = 4


def describe(findings: Sequence[Mapping[str, Any]], body: Any) -> str:
    """What is wrong where; of a union's members, which report one each, those that fitted best."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        path, reason = ".".join(path_of(finding, body)), _reason(finding)
        if reason not in reasons.setdefault(path, []):
            reasons[path].append(reason)
    deepest = [path for path in reasons if not any(other.startswith(f"{path}.") for other in reasons)]
    return "; ".join(f"{path}: {_alternatives(reasons[path])}" for path in deepest[:_MAX_LINES])


def path_of(finding: Mapping[str, Any], body: Any) -> list[str]:
    """The keys that lead to what is at fault, without Pydantic's names for the members of unions."""
    path: list[str] = []
    parts = finding["loc"][1:]
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            if path and not (is_last and finding["type"] == "missing"):
                continue
        path.append(str(part))
    return path


def _alternatives(reasons: list[str]) -> str:
    first, *others = reasons
    return " or ".join([first, *(reason.removeprefix("must be ") for reason in others)])


def _reason(finding: Mapping[str, Any]) -> str:
    if finding["type"] == "union_tag_invalid":
        return f"{finding['ctx']['tag']!r} is not supported, only {finding['ctx']['expected_tags']}"
    if finding["type"] == "union_tag_not_found":
        return f"has no {finding['ctx']['discriminator']}"
    return _REASONS.get(finding["type"]) or finding["msg"].replace("Input should be", "must be", 1)
