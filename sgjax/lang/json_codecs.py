"""How plain values are written as JSON and read back: typed, bounded, and refused with the path to what is wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from sgjax.errors import RequestError

MAX_NODES = 20_000  # JSON values of constants included
MAX_DEPTH = 64
MAX_TEXT = 1 << 20  # characters of all strings together
MAX_NAME = 256
MAX_INT = 2**63 - 1


class Unsendable(ValueError):
    """A program with something that has no form in JSON."""


def shown(data: Any) -> str:
    """What an error says in place of a value."""
    return f"{data!r:.60}" if data is None or isinstance(data, (str, bool, int, float)) else f"a {type(data).__name__}"


class Reader:
    """What has been read of one document."""

    def __init__(self) -> None:
        self._num_nodes = 0
        self._num_chars = 0
        self._depth = 0

    def enter(self, at: str) -> None:
        """One more node, inside those that were not left. Raises RequestError for one too many."""
        self._num_nodes += 1
        self._depth += 1
        if self._num_nodes > MAX_NODES:
            raise RequestError(at, f"more than {MAX_NODES} nodes")
        if self._depth > MAX_DEPTH:
            raise RequestError(at, f"nested more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        self._depth -= 1

    def text(self, text: str, at: str) -> str:
        """The text, counted. Raises RequestError for too much, and for what is no Unicode."""
        self._num_chars += len(text)
        if self._num_chars > MAX_TEXT:
            raise RequestError(at, f"more than {MAX_TEXT} characters of text in all")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(at, f"{text!r:.100} is not valid Unicode") from None
        return text


class Codec(Protocol):
    """Both directions of one form."""

    def write(self, value: Any) -> Any:
        """Raises Unsendable."""
        ...

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        """Raises RequestError; `at` is where `data` stands in the document."""
        ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """A value of one of these types, exactly: true is no integer."""

    types: tuple[type, ...]
    what: str
    max_len: int = MAX_TEXT
    low: int = -MAX_INT

    def write(self, value: Any) -> Any:
        if type(value) not in self.types:
            raise Unsendable(f"{value!r:.100} is not {self.what}")
        return value

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        if type(data) not in self.types:
            raise RequestError(at, f"must be {self.what}, not {shown(data)}")
        if isinstance(data, str):
            if len(data) > self.max_len:
                raise RequestError(at, f"at most {self.max_len} characters")
            return reader.text(data, at)
        if not (math.isfinite(data) if isinstance(data, float) else self.low <= data <= MAX_INT):
            raise RequestError(at, f"{data!r:.40} is out of range")
        return data


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A name of a thing in a table."""

    table: Mapping[str, Any]

    def write(self, value: Any) -> str:
        for name, known in self.table.items():
            if known is value or known == value:
                return name
        raise Unsendable(f"{value!r:.100} is none of {', '.join(self.table)}")

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        if not isinstance(data, str) or data not in self.table:
            raise RequestError(at, f"must be one of {', '.join(self.table)}, not {shown(data)}")
        return self.table[data]


class Json:
    """Any JSON value."""

    def write(self, value: Any) -> Any:
        if value is None or type(value) in (str, bool, int, float):
            return value
        if type(value) is list:
            return [self.write(item) for item in value]
        if type(value) is dict and all(type(key) is str for key in value):
            return {key: self.write(item) for key, item in value.items()}
        raise Unsendable(f"{value!r:.100} is no JSON value")

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        reader.enter(at)
        try:
            if isinstance(data, list):
                return [self.read(item, f"{at}[{index}]", reader) for index, item in enumerate(data)]
            if isinstance(data, dict):
                return {reader.text(key, at): self.read(item, f"{at}.{key:.40}", reader) for key, item in data.items()}
            return None if data is None else SCALAR.read(data, at, reader)
        finally:
            reader.leave()


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A list of one kind."""

    item: Codec

    def write(self, value: Any) -> list[Any]:
        if not isinstance(value, tuple):
            raise Unsendable(f"{value!r:.100} is no tuple")
        return [self.item.write(item) for item in value]

    def read(self, data: Any, at: str, reader: Reader) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise RequestError(at, f"must be a list, not {shown(data)}")
        return tuple(self.item.read(item, f"{at}[{index}]", reader) for index, item in enumerate(data))


@dataclasses.dataclass(frozen=True)
class Optional:
    """Null, or a value."""

    inner: Codec

    def write(self, value: Any) -> Any:
        return None if value is None else self.inner.write(value)

    def read(self, data: Any, at: str, reader: Reader) -> Any:
        return None if data is None else self.inner.read(data, at, reader)


SCALAR = Plain((str, bool, int, float), "JSON")
