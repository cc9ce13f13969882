"""The formats of structural tags, in the notation of llguidance: texts, schemas and tags, in order or by trigger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import llguidance

from sgjax.grammar.schema_path import SchemaError, child, quoted

MAX_TAGS = 256
_KEYS: Mapping[Any, tuple[str, ...]] = {
    "const_string": ("value",),
    "json_schema": ("json_schema",),
    "any_text": (),
    "sequence": ("elements",),
    "or": ("elements",),
    "tag": ("begin", "content", "end"),
    "tags_with_separator": ("tags", "separator", "at_least_one", "stop_after_first"),
    "triggered_tags": ("triggers", "tags", "at_least_one", "stop_after_first"),
}

ReadySchema = Callable[[Any, str], Mapping[str, Any]]
"""Readies a schema for llguidance, given its JSON pointer."""


class Tag(NamedTuple):
    """A part with a beginning. `rest` is what follows it, in Lark."""

    begin: str
    rest: str


class FormatWriter:
    """Collects the rules of one grammar. Methods give the expression that stands for what they read.

    All of them raise SchemaError for what is malformed or not supported, with its JSON pointer.
    """

    def __init__(self, schema: ReadySchema, tokenizer: llguidance.LLTokenizer):
        self._schema = schema
        self._tokenizer = tokenizer
        self._rules: list[str] = []

    def lark(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join(["%llguidance {}", "", *self._rules, f"start: {start}", r"TEXT: /(.|\n)*/", ""])

    def format(self, value: Any, path: str, *, is_last: bool = True) -> str:
        """Any format. `is_last`: nothing comes after it, so that it may be free text."""
        kind = value.get("type") if isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(kind, str) and kind in _KEYS:
            check_keys(value, ("type", *_KEYS[kind]), path)
        match kind:
            case "const_string":
                return self._literal(_text(value, "value", path))
            case "json_schema":
                return self.json_schema(value.get("json_schema", True), child(path, "json_schema"))
            case "any_text" if is_last:
                return "TEXT"
            case "any_text":
                raise SchemaError(path, "free text must come last, or in a tag")
            case "sequence":
                return self._sequence(_list(value, "elements", path), child(path, "elements"), is_last=is_last)
            case "or":
                elements = enumerate(_list(value, "elements", path))
                members = [self.format(one, child(child(path, "elements"), i), is_last=is_last) for i, one in elements]
                return f"({' | '.join(map(_grouped, members))})"
            case "tag":
                tag = self._tag(value, path)
                return self._join(self._literal(tag.begin), tag.rest)
            case "tags_with_separator":
                return self._separated(value, path)
            case "triggered_tags" if is_last:
                return self._triggered(value, path)
        raise SchemaError(path, f"the format {quoted(kind)} is not supported here")

    def json_schema(self, schema: Any, path: str) -> str:
        """JSON that follows a schema."""
        return f"%json {json.dumps(self._schema(schema, path.removeprefix('#')))}"

    def tag(self, begin: str, content: str, end: str) -> Tag:
        """A tag around an expression."""
        return Tag(begin, self._join(content, self._literal(end)))

    def triggered(self, tags: Sequence[Tag], triggers: Mapping[str, Sequence[int]]) -> str:
        """Text that is free until a trigger, and one of the tags that begin with it.

        Args:
          triggers: which of the tags each begins.
        """
        heads = []
        for trigger, members in triggers.items():
            bodies = [self._join(self._literal(tags[i].begin[len(trigger) :]), tags[i].rest) for i in members]
            heads.append(self._join(self._free_until(trigger), f"({' | '.join(map(_grouped, bodies))})"))
        return f"({' | '.join(heads)})"

    def _sequence(self, elements: list[Any], path: str, *, is_last: bool) -> str:
        last = len(elements) - 1
        parts = [self.format(one, child(path, i), is_last=is_last and i == last) for i, one in enumerate(elements)]
        return self._join(*parts)

    def _tag(self, value: Any, path: str) -> Tag:
        if not isinstance(value, dict) or value.get("type", "tag") != "tag":
            raise SchemaError(path, f"must be a tag, not {quoted(value)}")
        check_keys(value, ("type", *_KEYS["tag"]), path)
        begin, end = (_text(value, key, path) for key in ("begin", "end"))
        content = value.get("content")
        if end and isinstance(content, dict) and content.get("type") == "any_text":
            return Tag(begin, self._free_until(end))
        return self.tag(begin, self.format(content, child(path, "content"), is_last=False), end)

    def _tags(self, value: Any, path: str) -> list[Tag]:
        return [self._tag(one, child(child(path, "tags"), i)) for i, one in enumerate(_list(value, "tags", path))]

    def _separated(self, value: Any, path: str) -> str:
        tags = [self._join(self._literal(tag.begin), tag.rest) for tag in self._tags(value, path)]
        tag = self._rule(" | ".join(map(_grouped, tags)))
        separator = self._literal(_text(value, "separator", path))
        several = tag if value.get("stop_after_first") else self._join(tag, f"({self._join(separator, tag)})*")
        return several if value.get("at_least_one") else f"({several})?"

    def _triggered(self, value: Any, path: str) -> str:
        tags = self._tags(value, path)
        triggers = by_trigger([tag.begin for tag in tags], value.get("triggers"), path, child(path, "tags"))
        one = self.triggered(tags, triggers)
        if value.get("stop_after_first"):
            return one if value.get("at_least_one") else f"({one} | TEXT)"
        return f"{one}{'+' if value.get('at_least_one') else '*'} TEXT"

    def _free_until(self, end: str) -> str:
        """Any text, up to `end` and with it."""
        literal = self._literal(end)
        return f"TEXT {literal}" if literal.startswith("<[") else self._rule(f"TEXT {literal}", is_lazy=True)

    def _rule(self, body: str, *, is_lazy: bool = False) -> str:
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}[lazy]: {body}" if is_lazy else f"{name}: {body}")
        return name

    def _join(self, *parts: str) -> str:
        return " ".join(filter(None, parts))

    def _literal(self, text: str) -> str:
        """Lark's spelling of a text: special tokens by their ids, for they are no text to the grammar."""
        parts: list[str] = []
        plain: list[int] = []

        def flush() -> None:
            if plain:
                parts.append(json.dumps(self._tokenizer.decode_bytes(plain).decode(), ensure_ascii=False))
                plain.clear()

        for token_id in self._tokenizer.tokenize_str(text, parse_special=True) if text else ():
            if self._tokenizer.is_special_token(token_id):
                flush()
                parts.append(f"<[{token_id}]>")
            else:
                plain.append(token_id)
        flush()
        return " ".join(parts)


def by_trigger(begins: Sequence[str], triggers: Any, path: str, tags_path: str) -> dict[str, list[int]]:
    """The tags that each trigger begins. Of two triggers of one tag the shorter appears first.

    Raises:
      SchemaError: a malformed list, a tag without a trigger, or a trigger without a tag.
    """
    where = child(path, "triggers")
    triggers = _list({"triggers": triggers}, "triggers", path)
    for i, trigger in enumerate(triggers):
        if not isinstance(trigger, str) or not trigger:
            raise SchemaError(child(where, i), f"must be text, and not empty; not {quoted(trigger)}")
    found: dict[str, list[int]] = {}
    for i, begin in enumerate(begins):
        fitting = [trigger for trigger in triggers if begin.startswith(trigger)]
        if not fitting:
            raise SchemaError(f"{child(tags_path, i)}/begin", f"{quoted(begin)} starts with none of the triggers")
        found.setdefault(min(fitting, key=len), []).append(i)
    for i, trigger in enumerate(triggers):
        if not any(trigger.startswith(used) for used in found):
            raise SchemaError(child(where, i), f"no tag begins with {quoted(trigger)}")
    return found


def check_keys(value: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    """Raises SchemaError for a key that means nothing here."""
    for key in value:
        if key not in known:
            raise SchemaError(child(path, key), f"not known here; the keys are {', '.join(known)}")


def _grouped(expression: str) -> str:
    return f"({expression})"


def _text(value: Mapping[str, Any], key: str, path: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise SchemaError(child(path, key), "must be text")
    return text


def _list(value: Mapping[str, Any], key: str, path: str) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list) or not items:
        raise SchemaError(child(path, key), "must be a list, and not empty")
    if len(items) > MAX_TAGS:
        raise SchemaError(child(path, key), f"too complex: more than {MAX_TAGS}")
    return items
