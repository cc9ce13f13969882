"""Structural tags: free text in which a trigger begins a part with a schema. A model calls its tools like this."""

from __future__ import annotations

from typing import Any

import llguidance

from sgjax.grammar.schema_path import SchemaError, child, quoted
from sgjax.grammar.structural_format import MAX_TAGS, FormatWriter, ReadySchema, by_trigger, check_keys


def to_lark(tag: Any, schema: ReadySchema, tokenizer: llguidance.LLTokenizer) -> str:
    """The grammar of a structural tag: SGLang's `structures` and `triggers`, or the newer `format`.

    With the former, text is free until a trigger appears in it. Then one of the structures must follow whose `begin`
    starts with it. The output may end wherever the text is free. A trigger, a begin or an end may be or hold a special
    token.

    Raises:
      SchemaError: malformed, a structure without a trigger, or a trigger without a structure.
    """
    if not isinstance(tag, dict) or tag.get("type") != "structural_tag":
        raise SchemaError("#", 'must be an object with "type": "structural_tag"')
    check_keys(tag, ("type", "structures", "triggers", "format"), "#")
    writer = FormatWriter(schema, tokenizer)
    if "format" not in tag:
        return writer.lark(_structures(tag, writer))
    for key in ("structures", "triggers"):
        if key in tag:
            raise SchemaError(f"#/{key}", "cannot be combined with format")
    return writer.lark(writer.format(tag["format"], "#/format"))


def _structures(tag: dict[str, Any], writer: FormatWriter) -> str:
    structures = tag.get("structures")
    if not isinstance(structures, list) or not structures:
        raise SchemaError("#/structures", "must be a list, and not empty")
    if len(structures) > MAX_TAGS:
        raise SchemaError("#/structures", f"too complex: more than {MAX_TAGS}")
    read = [_structure(value, child("#/structures", i)) for i, value in enumerate(structures)]
    triggers = by_trigger([begin for begin, _, _ in read], tag.get("triggers"), "#", "#/structures")
    tags = [
        writer.tag(begin, writer.json_schema(schema, f"#/structures/{i}/schema"), end)
        for i, (begin, schema, end) in enumerate(read)
    ]
    return f"{writer.triggered(tags, triggers)}* TEXT"


def _structure(value: Any, path: str) -> tuple[str, Any, str]:
    if not isinstance(value, dict):
        raise SchemaError(path, f"must be an object, not {quoted(value)}")
    check_keys(value, ("begin", "schema", "end"), path)
    for key in ("begin", "end"):
        if not isinstance(value.get(key), str):
            raise SchemaError(child(path, key), "must be text")
    return value["begin"], value.get("schema", {}), value["end"]
