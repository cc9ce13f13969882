"""What a model thinks before it answers, between `<think>` and `</think>`."""

from __future__ import annotations

from typing import Literal

from sgjax_server.chat.parsers.pieces import Reasoning
from sgjax_server.chat.parsers.source import Reading, Source

OPEN, CLOSE = "<think>", "</think>"

ReasoningFormatName = Literal["deepseek-r1", "qwen3"]
"""SGLang's names. Outputs of "deepseek-r1" begin inside of reasoning; those of "qwen3" may begin with its mark."""


def reasoning(source: Source, *, is_open: bool) -> Reading[None]:
    """Gives the thoughts that begin the output, then text.

    Args:
      is_open: the output begins inside of them, because the prompt ends with the opening mark or the model omits it;
        it may stand there nevertheless.
    """
    yield from source.spaces()
    if (yield from source.literal(OPEN)) or is_open:
        source.take()
        yield from source.until((CLOSE,), Reasoning)
        yield from source.spaces()
        source.take()
    else:
        source.back()
    yield from source.until(())
