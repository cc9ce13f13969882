"""Schemas that only an endless value satisfies: a list node whose next node is required."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def close_endless(root: dict[str, Any], defs: Mapping[str, Any]) -> bool:
    """Makes references to what no finite value satisfies unsatisfiable on the spot, so that nothing begins one.

    False when that leaves nothing for the schema as a whole.

    A least fixed point, as for the productive symbols of a context-free grammar. Bounds and types that contradict each
    other are left to llguidance.
    """
    ended: set[str] = set()  # definitions known to have a finite value
    grows = True
    while grows:
        found = {name for name, schema in defs.items() if name not in ended and _ends(schema, ended)}
        ended |= found
        grows = bool(found)
    if not _ends(root, ended):
        return False
    endless = {f"#/$defs/{name}" for name in defs if name not in ended}
    if endless:
        for schema in (root, *defs.values()):
            _close(schema, endless)
    return True


def _close(schema: Any, endless: set[str]) -> None:
    if not isinstance(schema, dict):
        return
    if schema.get("$ref") in endless:
        schema.clear()
        schema["enum"] = []  # llguidance leaves out optional parts that are so, but not references to such
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            members = list(value.values())
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            members = value
        else:
            members = [value] if key in ("items", "additionalProperties") else []
        for member in members:
            _close(member, endless)


def _ends(schema: Any, ended: set[str]) -> bool:
    """Whether some finite value may satisfy the schema, given those definitions of which this is known."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in ended:
        return False
    if not all(_ends(sub, ended) for sub in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_ends(sub, ended) for sub in schema[key]):
            return False
    if schema.get("type") == "object":
        others = schema.get("additionalProperties", True)
        properties = schema.get("properties", {})
        return all(_ends(properties.get(name, others), ended) for name in schema.get("required", ()))
    if schema.get("type") == "array":
        items = [*schema.get("prefixItems", ()), schema.get("items", True)]
        return all(_ends(sub, ended) for sub in items[: schema.get("minItems", 0)])
    return True
