"""Regular expressions of ECMA 262, which JSON Schema's patterns are, in the spelling of Rust's regex crate."""

from __future__ import annotations

import re
from typing import Any

from sgjax.grammar.schema_path import SchemaError, quoted

# Characters that a JSON string can spell only as \u00.., which is not generated (see whitespace.py): a text that needs
# one would come out without it.
CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_LINE_ENDS = r"\n\r\u2028\u2029"
_LETTERS = "dDwWtnvfrbBxupPk"  # escapes that mean the same in both, or that Rust refuses
_PART = re.compile(
    r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]+\}|\\.|\(\?.?.?|\{,|&&|~~|--|\[\^?|.", re.DOTALL
)
_GROUPS = ("(?:", "(?=", "(?!", "(?<", "(?P<")  # lookarounds are refused by llguidance, in its own words
_SETS = ("&&", "~~", "--")


def to_rust(value: Any, path: str) -> str:
    r"""The same language in Rust's spelling.

    `.` and `\s` stand for other characters there, classes may hold classes and set operations, an empty class is the
    beginning of one that holds a bracket, and some escapes mean something else.

    Raises:
      SchemaError: no text, or a part without an equal in Rust's dialect.
    """
    if not isinstance(value, str):
        raise SchemaError(path, f"must be a string, not {quoted(value)}")
    parts = []
    in_class = negated = False
    for match in _PART.finditer(value):
        part = match[0]
        if not negated and _is_control(part):
            raise SchemaError(path, f"the control character {quoted(part)} is not supported in a pattern")
        if part[0] == "\\":
            part = _escape(part, path, in_class)
        elif in_class:
            in_class = part != "]"
            negated = negated and in_class
            if part[0] == "[":
                part = "\\" + part
            elif part in _SETS:
                part = "".join("\\" + char for char in part)
            elif part[:2] == "(?" and "]" in part:
                raise SchemaError(path, f"{quoted(part)} in a class is not supported; escape the question mark")
        elif part[0] == "[":
            if value[match.end() : match.end() + 1] == "]":
                raise SchemaError(path, f"the empty class {part}] is not supported")
            in_class, negated = True, part == "[^"
        elif part == ".":
            part = f"[^{_LINE_ENDS}]"
        elif part == "{," or (part.startswith("(?") and not part.startswith(_GROUPS) and part != "(?P"):
            raise SchemaError(path, f"{quoted(part)} is not supported in a pattern")
        parts.append(part)
    return "".join(parts)


def _escape(part: str, path: str, in_class: bool) -> str:
    if part in (r"\s", r"\S"):
        if in_class and part == r"\s":
            return _SPACE
        return f"[{'^' if part == r'\S' else ''}{_SPACE}]"
    char = part[1]
    if char.isalnum() and char not in _LETTERS:
        raise SchemaError(path, f"{part} is not supported in a pattern")
    return part


def _is_control(part: str) -> bool:
    if part == r"\v":
        return True
    if part[:2] in (r"\x", r"\u") and len(part) > 2:
        code = int(part[2:].strip("{}"), 16)
        return code < 128 and bool(CONTROL.match(chr(code)))
    return bool(CONTROL.match(part))
