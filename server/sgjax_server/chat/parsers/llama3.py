"""Llama 3's format: `{"name": ..., "parameters": {...}}`, alone or after `<|python_tag|>`; further ones after `;`."""

from __future__ import annotations

import functools
from collections.abc import Set

from sgjax_server.chat.parsers.json_call import json_call
from sgjax_server.chat.parsers.source import Reading, Source

PYTHON_TAG = "<|python_tag|>"
SEPARATOR = ";"


def llama3(source: Source, tools: Set[str]) -> Reading[None]:
    """Gives calls and the text around them. Without the tag a call must begin the output."""
    call = functools.partial(json_call, source, tools)
    if not (yield from source.items(call, SEPARATOR)):
        source.back()
    while (yield from source.until((PYTHON_TAG,))):
        if not (yield from source.items(call, SEPARATOR)):
            yield from source.give_back(len(PYTHON_TAG))
