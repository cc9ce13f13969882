"""How JSON is laid out.

Compact, as OpenAI's structured outputs are: no space anywhere. Then every byte between two values is fixed, so that
`","next_key":"` is one jump forward instead of a token at a time, and a small model cannot lose itself in whitespace. A
schema asks for another layout with llguidance's own key:

    {"type": "object", ..., "x-guidance": {"item_separator": ", ", "key_separator": ": "}}      also one jump
    {"type": "object", ..., "x-guidance": {"whitespace_flexible": true}}                        any whitespace
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sgjax.grammar.schema_path import SchemaError, child, quoted

# Without `u`: a character that can be escaped in two ways gives a property two names, of which llguidance knows one.
_FIXED = {"json_allowed_escapes": 'nrbtf"\\'}
_DEFAULTS = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
_SEPARATORS: Mapping[str, re.Pattern[str]] = {
    "item_separator": re.compile(r"[ \t\r\n]*,[ \t\r\n]*"),
    "key_separator": re.compile(r"[ \t\r\n]*:[ \t\r\n]*"),
}
# `lenient` is not among them: it takes what the schema forbids.
_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "whitespace_flexible": lambda key, value: isinstance(value, bool),
    "item_separator": lambda key, value: isinstance(value, str) and bool(_SEPARATORS[key].fullmatch(value)),
    "key_separator": lambda key, value: isinstance(value, str) and bool(_SEPARATORS[key].fullmatch(value)),
}


def with_options(schema: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """The schema with llguidance's options: ours, overridden by those of its author.

    Raises:
      SchemaError: an option that is unknown or not allowed.
    """
    path = "#/x-guidance"
    if not isinstance(options, Mapping):
        raise SchemaError(path, f"must be an object, not {quoted(options)}")
    for key, value in options.items():
        if key not in _CHECKS:
            raise SchemaError(child(path, key), f"no option; the options are {', '.join(_CHECKS)}")
        if not _CHECKS[key](key, value):
            raise SchemaError(child(path, key), f"not supported: {quoted(value)}")
    return {**schema, "x-guidance": {**_DEFAULTS, **options, **_FIXED}}
