"""Places in a schema, and what is said about them."""

from __future__ import annotations

from typing import Any


class SchemaError(ValueError):
    """A schema that is refused. `path`: the keyword's JSON pointer, with its `#`."""

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def child(path: str, key: str | int) -> str:
    """The JSON pointer of a member (RFC 6901)."""
    return f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"


def quoted(value: Any) -> str:
    """A value in a message, cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
