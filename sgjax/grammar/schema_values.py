"""The values of JSON Schema's keywords: what the metaschema asks of them, and what llguidance can hold exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sgjax.grammar.ecma import CONTROL, to_rust
from sgjax.grammar.schema_path import SchemaError, child, quoted

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# llguidance keeps bounds as doubles, in which larger integers are no longer exact. It is also the range within which
# JSON's readers agree (RFC 8259, section 6).
MAX_EXACT = 2**53
MAX_COUNT = 10_000  # llguidance lays out an array's items one by one
MAX_LEN = 1_000_000
MAX_MULTIPLE = 100_000  # of multipleOf's digits without zeros at the end: the automaton has a state for each remainder
MAX_DIGITS = 15  # of a number's decimal spelling; a double holds them exactly
# Those that llguidance enforces; JSON Schema 2020-12 calls formats annotations, and so are all others.
FORMATS = frozenset({"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})


def count(value: Any, path: str) -> int:
    """A number of items, properties or characters. JSON Schema allows 2.0 for 2."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SchemaError(path, f"must be an integer of 0 or more, not {quoted(value)}")
    return value


def limited_count(value: Any, path: str) -> int:
    value = count(value, path)
    if value > MAX_COUNT:
        raise SchemaError(path, f"{value} is too complex; at most {MAX_COUNT}")
    return value


def limited_len(value: Any, path: str) -> int:
    value = count(value, path)
    if value > MAX_LEN:
        raise SchemaError(path, f"{value} is too complex; at most {MAX_LEN}")
    return value


def number(value: Any, path: str) -> int | float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise SchemaError(path, f"must be a number, not {quoted(value)}")
    return value


def lower_bound(value: Any, path: str) -> int | float:
    """A minimum. One below what doubles hold is drawn inwards: fewer numbers, none of them wrong."""
    value = max(number(value, path), -MAX_EXACT)
    if value > MAX_EXACT:
        raise SchemaError(path, f"not supported above 2**53: {quoted(value)}")
    return _exact(value, path)


def upper_bound(value: Any, path: str) -> int | float:
    """A maximum; see `lower_bound`."""
    value = min(number(value, path), MAX_EXACT)
    if value < -MAX_EXACT:
        raise SchemaError(path, f"not supported below -2**53: {quoted(value)}")
    return _exact(value, path)


def multiple(value: Any, path: str) -> int | float:
    if number(value, path) <= 0:
        raise SchemaError(path, f"must be above 0, not {quoted(value)}")
    if value > 2**31:
        raise SchemaError(path, f"not supported above 2**31: {quoted(value)}")
    value = _exact(value, path)
    if int(repr(value).replace(".", "").rstrip("0")) > MAX_MULTIPLE:
        raise SchemaError(path, f"{value} is too complex; at most {MAX_MULTIPLE} in digits, without zeros at the end")
    return value


def _exact(value: int | float, path: str) -> int | float:
    """Refuses a number that llguidance would write in another way than it was meant."""
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        if "e" in repr(value) or len(repr(value).lstrip("-").replace(".", "").lstrip("0")) > MAX_DIGITS:
            raise SchemaError(path, f"not supported: {quoted(value)} has no short decimal spelling")
    return value


def constant(value: Any, path: str) -> Any:
    """A value of `const` or `enum`."""
    if isinstance(value, dict):
        return {key: constant(member, path) for key, member in value.items()}
    if isinstance(value, list):
        return [constant(member, path) for member in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) > MAX_EXACT:
            raise SchemaError(path, f"not supported beyond 2**53: {quoted(value)}")
        return _exact(value, path)
    if isinstance(value, str) and (char := CONTROL.search(value)):
        raise SchemaError(path, f"the control character {char[0]!r} is not supported")
    return value


def constants(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SchemaError(path, f"must be a list of values, not {quoted(value)}")
    return [constant(member, child(path, i)) for i, member in enumerate(value)]


def types(value: Any, path: str) -> Any:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name not in TYPES:
            raise SchemaError(path, f"{quoted(name)} is no type; the types are {', '.join(TYPES)}")
    if not names or len(set(names)) < len(names):
        raise SchemaError(path, "must name one type or more, each once")
    return value


def text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(path, f"must be a string, not {quoted(value)}")
    return value


def names(value: Any, path: str) -> list[str]:
    """The list of `required`."""
    if not isinstance(value, list):
        raise SchemaError(path, f"must be a list of names, not {quoted(value)}")
    for i, name in enumerate(value):
        text(name, child(path, i))
    if len(set(value)) < len(value):
        raise SchemaError(path, "names a property twice")
    return value


# Keywords whose value holds no schema. None of them depends on its neighbours.
PLAIN: Mapping[str, Callable[[Any, str], Any]] = {
    "type": types,
    "enum": constants,
    "const": constant,
    "minLength": limited_len,
    "maxLength": limited_len,
    "pattern": to_rust,
    "format": text,
    "minimum": lower_bound,
    "exclusiveMinimum": lower_bound,
    "maximum": upper_bound,
    "exclusiveMaximum": upper_bound,
    "multipleOf": multiple,
    "minItems": limited_count,
    "maxItems": limited_count,
    "minProperties": limited_count,
    "maxProperties": limited_count,
    "required": names,
}
