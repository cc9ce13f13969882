"""Hermes' format, which Qwen 2.5 and 3 write: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Set

from sgjax_server.chat.parsers.json_call import json_call
from sgjax_server.chat.parsers.source import Reading, Source

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def hermes(source: Source, tools: Set[str]) -> Reading[None]:
    """Gives calls and the text around them."""
    while (yield from source.until((OPEN,))):
        yield from source.spaces()
        if (yield from json_call(source, tools)):
            yield from source.closing(CLOSE)
        else:
            yield from source.give_back(len(OPEN))
