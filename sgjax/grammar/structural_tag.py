"""Structural tags: free text in which a trigger begins a part with a schema. A model calls its tools like this."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import llguidance

from sgjax.grammar.schema_path import SchemaError, child, quoted

MAX_STRUCTURES = 256


def to_lark(tag: Any, schema: Callable[[Any, str], Mapping[str, Any]], tokenizer: llguidance.LLTokenizer) -> str:
    """The grammar of SGLang's structural tag: `structures` of `begin`, `schema`, `end`, and `triggers`.

    Text is free until a trigger appears in it. Then one of the structures must follow whose `begin` starts with it. The
    output may end wherever the text is free. A trigger, a begin or an end may be or hold a special token.

    Args:
      schema: readies a schema for llguidance, given its JSON pointer.

    Raises:
      SchemaError: malformed, a structure without a trigger, or a trigger without a structure.
    """
    structures, triggers = _read(tag)
    tagged = ["%llguidance {}", ""]
    heads = []
    for i, (trigger, members) in enumerate(_by_trigger(structures, triggers).items()):
        bodies = []
        for index in members:
            begin, value, end = structures[index]
            content = json.dumps(schema(value, f"/structures/{index}/schema"))
            rest = _literal(begin[len(trigger) :], tokenizer)
            bodies.append(" ".join(filter(None, [rest, f"%json {content}", _literal(end, tokenizer)])))
        heads.append(f"tag_{i}")
        literal = _literal(trigger, tokenizer)
        if literal.startswith("<["):
            tagged.append(f"tag_{i}: TEXT {literal} tag_{i}_body")
        else:
            tagged += [f"tag_{i}_trigger[lazy]: TEXT {literal}", f"tag_{i}: tag_{i}_trigger tag_{i}_body"]
        tagged.append(f"tag_{i}_body: " + "\n  | ".join(bodies))
    tagged += [f"start: ({' | '.join(heads)})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    return "\n".join(tagged) + "\n"


def _read(tag: Any) -> tuple[list[tuple[str, Any, str]], list[str]]:
    if not isinstance(tag, dict) or tag.get("type") != "structural_tag":
        raise SchemaError("#", 'must be an object with "type": "structural_tag"')
    if "format" in tag:
        raise SchemaError("#/format", "not supported; give structures and triggers")
    structures, triggers = tag.get("structures"), tag.get("triggers")
    for key, value in (("structures", structures), ("triggers", triggers)):
        if not isinstance(value, list) or not value:
            raise SchemaError(f"#/{key}", "must be a list, and not empty")
        if len(value) > MAX_STRUCTURES:
            raise SchemaError(f"#/{key}", f"too complex: more than {MAX_STRUCTURES}")
    assert isinstance(structures, list)
    assert isinstance(triggers, list)
    for i, trigger in enumerate(triggers):
        if not isinstance(trigger, str) or not trigger:
            raise SchemaError(child("#/triggers", i), f"must be text, and not empty; not {quoted(trigger)}")
    return [_structure(value, child("#/structures", i)) for i, value in enumerate(structures)], triggers


def _structure(value: Any, path: str) -> tuple[str, Any, str]:
    if not isinstance(value, dict):
        raise SchemaError(path, f"must be an object, not {quoted(value)}")
    for key in ("begin", "end"):
        if not isinstance(value.get(key), str):
            raise SchemaError(child(path, key), "must be text")
    return value["begin"], value.get("schema", {}), value["end"]


def _by_trigger(structures: list[tuple[str, Any, str]], triggers: list[str]) -> dict[str, list[int]]:
    """The structures that each trigger begins. Of two triggers of one structure the shorter appears first."""
    found: dict[str, list[int]] = {}
    for i, (begin, _, _) in enumerate(structures):
        fitting = [trigger for trigger in triggers if begin.startswith(trigger)]
        if not fitting:
            raise SchemaError(f"#/structures/{i}/begin", f"{quoted(begin)} starts with none of the triggers")
        found.setdefault(min(fitting, key=len), []).append(i)
    for i, trigger in enumerate(triggers):
        if not any(trigger.startswith(used) for used in found):
            raise SchemaError(child("#/triggers", i), f"no structure begins with {quoted(trigger)}")
    return found


def _literal(text: str, tokenizer: llguidance.LLTokenizer) -> str:
    """Lark's spelling of a text: special tokens by their ids, for they are no text to the grammar."""
    parts: list[str] = []
    plain: list[int] = []

    def flush() -> None:
        if plain:
            parts.append(json.dumps(tokenizer.decode_bytes(plain).decode(), ensure_ascii=False))
            plain.clear()

    for token_id in tokenizer.tokenize_str(text, parse_special=True) if text else ():
        if tokenizer.is_special_token(token_id):
            flush()
            parts.append(f"<[{token_id}]>")
        else:
            plain.append(token_id)
    flush()
    return " ".join(parts)
