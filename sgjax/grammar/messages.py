"""llguidance's messages, for those who do not work on it."""

from __future__ import annotations

MAX_LEN = 500
_WORDS = {
    "NoExtension": "nothing matches it",
    "NoExtensionBias": "nothing matches it",
    "too many states": "too complex: its regular expressions need more states than the limit",
    "too many expressions": "too complex: its regular expressions need more parts than the limit",
    "Too many items": "too complex: too many ways to read what was generated",
    "Current row has": "too complex: too many ways to read what was generated",
    "fuel": "too complex: its regular expressions take longer than the limit",
    "schema too large": "too complex: the schema is too large",
    "stack level exceeded": "too complex: the schemas to be combined refer to each other too deeply",
}


def plain_message(message: str) -> str:
    """The message in the user's words where it is a limit or a reason to stop; else without its trace."""
    for part, words in _WORDS.items():
        if part in message:
            return words
    lines = []
    for line in message.replace("<non-verbose/>", "").splitlines():
        if line.lstrip().startswith("while processing"):
            break
        lines.append(line)
    text = "\n".join(lines).strip()
    return text if len(text) <= MAX_LEN else text[:MAX_LEN] + "..."


def is_worn_out(message: str) -> bool:
    """Whether the states that all matchers of a grammar share are used up."""
    return "too many states" in message
