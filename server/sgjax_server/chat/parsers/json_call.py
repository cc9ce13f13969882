"""A call written as a JSON object with a name and arguments, which most formats wrap in their own marks."""

from __future__ import annotations

import json
from collections.abc import Set

from sgjax_server.chat.parsers.pieces import Arguments, CallStarted
from sgjax_server.chat.parsers.source import Reading, Source

_ARGUMENTS = ("arguments", "parameters")
# An object that begins with another key is an ordinary answer in JSON, and shown at once.
_KEYS = frozenset({"name", "type", "id", *_ARGUMENTS})


def json_call(source: Source, tools: Set[str]) -> Reading[bool]:
    """Gives the call whose object comes next. Arguments come while they are written, if the name was before them.

    Returns:
      False when this is no call of one of `tools`; nothing was given then, and what was read can be taken back. After
      an object that goes wrong behind its arguments, the rest is left unread.
    """
    if not (yield from source.literal("{")):
        return False
    name: str | None = None
    arguments: str | None = "{}"
    is_started = False
    while True:
        yield from source.spaces()
        key = yield from source.string()
        if key is None or not (is_started or key in _KEYS) or not (yield from _colon(source)):
            break
        if key == "name" and not is_started:
            name = yield from source.string()
            if name not in tools:
                return False
        elif key in _ARGUMENTS and name is not None and not is_started and (yield from source.peek()) == "{":
            yield CallStarted(name)
            is_started = True
            if not (yield from source.arguments()):
                return True
        else:
            value = yield from source.value()
            if key in _ARGUMENTS and not is_started:
                value = arguments = _object_text(value)
            if value is None:
                break
        yield from source.spaces()
        if (yield from source.literal("}")):
            if not is_started and name is not None and arguments is not None:
                yield CallStarted(name)
                yield Arguments(arguments)
                is_started = True
            if is_started:
                source.take()
            return is_started
        if not (yield from source.literal(",")):
            break
    if is_started:
        source.back()
    return is_started


def _colon(source: Source) -> Reading[bool]:
    yield from source.spaces()
    found = yield from source.literal(":")
    yield from source.spaces()
    return found


def _object_text(value: str | None) -> str | None:
    """The JSON object that a value is, or holds as a string, since some models quote their arguments; null is empty."""
    try:
        read = json.loads(value or "")
        if isinstance(read, str):
            value, read = read, json.loads(read)
            value.encode()
    except (ValueError, RecursionError):
        return None
    return "{}" if read is None else value if isinstance(read, dict) else None
