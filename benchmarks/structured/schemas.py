"""Varied JSON schemas of the kinds that people send, from a seed. Every instance is short: strings are bounded."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

NAMES = (
    *("name", "title", "city", "country", "status", "category", "priority", "quantity", "unit_price", "currency"),
    *("is_active", "created_on", "email", "tags", "address", "postal_code", "favourite_colour", "rating", "notes"),
    *("customer", "order_number", "shipping_method", "coordinates", "latitude", "longitude", "children", "language"),
)
WORDS = ("red", "green", "blue", "low", "medium", "high", "open", "closed", "pending", "north", "south", "EUR", "USD")

# Long keys, short values: what jump-forward is for.
CHARACTER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "occupation": {"enum": ["student", "engineer", "teacher", "artist"]},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 12},
                "city": {"type": "string", "maxLength": 12},
                "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "city", "postal_code"],
            "additionalProperties": False,
        },
        "favourite_colour": {"enum": ["red", "green", "blue"]},
        "is_active": {"type": "boolean"},
        "favourite_animals": {
            "type": "array",
            "items": {"enum": ["cat", "dog"]},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["name", "age", "occupation", "address", "favourite_colour", "is_active", "favourite_animals"],
    "additionalProperties": False,
}


def unbounded(schema: Any) -> Any:
    """The schema without limits on the length of strings."""
    if isinstance(schema, dict):
        return {key: unbounded(value) for key, value in schema.items() if key != "maxLength"}
    return [unbounded(item) for item in schema] if isinstance(schema, list) else schema


def make_schema(seed: int) -> dict[str, Any]:
    """An object schema; equal seeds give equal schemas."""
    rng = random.Random(seed)
    schema = _object(rng, depth=2)
    if seed % 7 == 0:
        definition = _object(rng, depth=1)
        schema["$defs"] = {"part": definition}
        schema["properties"]["first_part"] = {"$ref": "#/$defs/part"}
        schema["required"].append("first_part")
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(1, 5))
    properties = {name: _value(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.8]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(4, 16)},
        lambda: (
            {"type": "string", "pattern": rng.choice(["^[A-Z]{2}-[0-9]{3}$", "^[a-z]+$", "^(a|b)c?d{2,4}$"])}
            | {"maxLength": 12}
        ),
        # A time may have any number of decimals, and a small model writes them all.
        lambda: {"type": "string", "format": rng.choice(["date", "ipv4", "uuid", "time"]), "maxLength": 36},
        lambda: {"enum": rng.sample(WORDS, rng.randint(2, 4))},
        lambda: {"enum": [1, "two", None, False]},
        lambda: {"const": rng.choice(WORDS)},
        lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 5000)},
        lambda: {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
        lambda: {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 5}]},
    )
    nested: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: _object(rng, depth),
        lambda: {"type": "array", "items": _value(rng, depth - 1), "minItems": rng.randint(0, 2), "maxItems": 3},
        lambda: {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False},
    )
    return rng.choice((*kinds, *nested) if depth > 0 else kinds)()
