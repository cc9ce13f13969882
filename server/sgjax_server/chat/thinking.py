"""Whether an output begins with reasoning, which the model's kind and the end of the prompt decide."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sgjax_server.chat.parsers.reasoning import CLOSE, OPEN, ReasoningFormatName

if TYPE_CHECKING:
    from sgjax.text import Tokenizer

Thinking = Literal["open", "optional", "none"]
"""An output begins inside of reasoning, may begin with its opening mark, or has none."""

_NUM_TAIL = 32  # tokens: more than the mark and white space after it have, also of one byte each


def thinking(
    parser: ReasoningFormatName | None,
    tokenizer: Tokenizer,
    input_ids: Sequence[int],
    messages: Sequence[Mapping[str, Any]],
    *,
    continues: bool,
) -> Thinking:
    """What to expect after a prompt. Templates open or close the reasoning there, as `enable_thinking` asks.

    Args:
      continues: the output continues the last message.
    """
    if parser is None:
        return "none"
    if continues:
        shown = str(messages[-1].get("content"))
        if CLOSE in shown:
            return "none"
        if OPEN in shown:
            return "open"
    tail = tokenizer.decode(input_ids[-_NUM_TAIL:], skip_special_tokens=False).rstrip()
    if tail.endswith(OPEN):
        return "open"
    if tail.endswith(CLOSE):
        return "none"
    return "open" if parser == "deepseek-r1" else "optional"


def count_reasoning(expected: Thinking, tokenizer: Tokenizer, output_ids: Sequence[int]) -> int:
    """How many of an output's tokens are reasoning, the marks around it included; all while it has not ended."""
    if expected == "none":
        return 0
    pieces = [tokenizer.token_bytes(token_id) for token_id in output_ids]
    text = b"".join(pieces)
    if expected == "optional" and not text.lstrip().startswith(OPEN.encode()):
        return 0
    _, mark, after = text.partition(CLOSE.encode())
    if not mark:
        return len(output_ids)
    ends = list(itertools.accumulate(map(len, pieces)))
    return bisect.bisect_left(ends, len(text) - len(after)) + 1
