"""DeepSeek's formats: between marks, V3 and R1 write `function`, a separator, the name and JSON in a fenced block;
V3.1 writes the name, the separator and JSON.
"""

from __future__ import annotations

from collections.abc import Set

from sgjax_server.chat.parsers.pieces import CallStarted
from sgjax_server.chat.parsers.source import Reading, Source

# The bars are U+FF5C and the low lines U+2581, as in the vocabulary.
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
FENCE, FENCE_END = "```json", "```"


def deepseek(source: Source, tools: Set[str]) -> Reading[None]:
    """Gives calls of either form and the text around them."""
    while mark := (yield from source.until((CALLS_BEGIN, CALL_BEGIN))):
        yield from source.spaces()
        is_begun = mark == CALL_BEGIN or (yield from source.literal(CALL_BEGIN))
        if not is_begun or not (yield from _call(source, tools)):
            yield from source.give_back(len(mark))


def _call(source: Source, tools: Set[str]) -> Reading[bool]:
    name = yield from source.word()
    if not (yield from source.literal(SEPARATOR)):
        return False
    yield from source.spaces()
    is_fenced = (yield from source.peek()) != "{"
    if is_fenced:  # the first word was the kind of tool
        name = yield from source.word()
        yield from source.spaces()
        if not (yield from source.literal(FENCE)):
            return False
        yield from source.spaces()
    if name not in tools or (yield from source.peek()) != "{":
        return False
    yield CallStarted(name)
    if (yield from source.arguments()):
        yield from source.closing(*((FENCE_END,) if is_fenced else ()), CALL_END, CALLS_END)
    return True
