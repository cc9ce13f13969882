"""llguidance's messages, for those who do not work on it."""

from __future__ import annotations

import re

MAX_LEN = 500
_SOURCE_LINE = re.compile(r" *\d+ \| ")  # of the grammar in which a regular expression was put
_WORDS = {
    "coerce_one_of": "the alternatives of oneOf overlap, or cannot be shown not to; write anyOf if that is meant",
    "NoExtension": "nothing matches it",
    "NoExtensionBias": "nothing matches it",
    "too many states": "too complex: its regular expressions need more states than the limit",
    "too many expressions": "too complex: its regular expressions need more parts than the limit",
    "Too many items": "too complex: too many ways to read what was generated",
    "Current row has": "too complex: too many ways to read what was generated",
    "fuel": "too complex: its regular expressions take longer than the limit",
    "recursion limit exceeded": "too complex: nested too deeply",
    "exceeds the limit of": "too complex: nested too deeply",
    "schema too large": "too complex: the schema is too large",
    "stack level exceeded": "too complex: the schemas to be combined refer to each other too deeply",
}


def plain_message(message: str) -> str:
    """The message in the user's words where it is a limit or a reason to stop; else without its trace."""
    for part, words in _WORDS.items():
        if part in message:
            return words
    head, found, regex_error = message.replace("<non-verbose/>", "").partition("regex parse error:")
    lines = []
    for line in (found + regex_error if found else head).splitlines():
        if line.lstrip().startswith("while processing") or (found and _SOURCE_LINE.match(line)):
            break
        lines.append(line)
    text = "\n".join(lines).strip()
    if len(text) <= MAX_LEN:
        return text
    return next((line for line in lines if line.startswith("error: ")), text[:MAX_LEN] + "...")


def is_worn_out(message: str) -> bool:
    """Whether the states, or the expressions they stand for, that all matchers of a grammar share are used up."""
    return "too many states" in message or "too many expressions" in message
