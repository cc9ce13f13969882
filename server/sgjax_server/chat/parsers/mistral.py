"""Mistral's formats: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, and newer `[TOOL_CALLS]name[ARGS]{...}`."""

from __future__ import annotations

import functools
from collections.abc import Set

from sgjax_server.chat.parsers.json_call import json_call
from sgjax_server.chat.parsers.pieces import CallStarted
from sgjax_server.chat.parsers.source import Reading, Source

OPEN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def mistral(source: Source, tools: Set[str]) -> Reading[None]:
    """Gives calls of either form and the text around them."""
    while (yield from source.until((OPEN,))):
        yield from source.spaces()
        read = _list if (yield from source.peek()) == "[" else _named
        if not (yield from read(source, tools)):
            yield from source.give_back(len(OPEN))


def _list(source: Source, tools: Set[str]) -> Reading[bool]:
    yield from source.literal("[")
    is_call = yield from source.items(functools.partial(json_call, source, tools), ",")
    if is_call:
        yield from source.closing("]")
    return is_call


def _named(source: Source, tools: Set[str]) -> Reading[bool]:
    name = yield from source.word()
    if (yield from source.literal(CALL_ID)):
        yield from source.word()
    yield from source.literal(ARGS)
    yield from source.spaces()
    if name not in tools or (yield from source.peek()) != "{":
        return False
    yield CallStarted(name)
    yield from source.arguments()
    return True
