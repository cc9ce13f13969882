"""JSON Schema as llguidance can hold it: checked, with one meaning, and refused by the keyword's path where it cannot.

llguidance refuses what it does not implement, but without saying where, and it takes some schemas for others: keywords
of an older draft, additional properties spelled like a named one, numbers that doubles cannot hold. So a schema is
rewritten first, from the drafts 4 to 2020-12 into the part of 2020-12 that was found to be enforced exactly. What is
left out are annotations; what would be lost is refused.

Beyond the standard: a reference to another document or into an embedded one is refused, nothing is fetched.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sgjax.grammar.schema_ends import close_endless
from sgjax.grammar.schema_path import SchemaError, child, quoted
from sgjax.grammar.schema_values import FORMATS, PLAIN, text

MAX_DEPTH = 128  # levels of schemas within schemas, references included: beyond 1000 llguidance overflows the stack
MAX_NESTED = 120  # brackets around a schema: llguidance reads no JSON that is nested deeper than 128
MAX_SUBSCHEMAS = 20_000
MAX_OPTIONAL = 450  # optional properties of an object: llguidance keeps 4 items for each, and at most 2000

_DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    *("items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties"),
    *("not", "if", "then", "else", "contains", "propertyNames"),
)
# Assertions of any draft that are not implemented. Each maps to a test for values that assert nothing.
_UNSUPPORTED: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "not": lambda value, node: value is False,
    "if": lambda value, node: "then" not in node and "else" not in node,
    "then": lambda value, node: "if" not in node,
    "else": lambda value, node: "if" not in node,
    "contains": lambda value, node: False,
    "minContains": lambda value, node: "contains" not in node,
    "maxContains": lambda value, node: "contains" not in node,
    "uniqueItems": lambda value, node: value is False,
    "propertyNames": lambda value, node: value is True or value == {},
    "unevaluatedItems": lambda value, node: value is True or value == {},
    "unevaluatedProperties": lambda value, node: value is True or value == {},
    "$dynamicRef": lambda value, node: False,
    "$recursiveRef": lambda value, node: False,
    "divisibleBy": lambda value, node: False,
    "disallow": lambda value, node: False,
    "extends": lambda value, node: False,
}


class Rewritten(NamedTuple):
    """A schema that llguidance enforces exactly.

    Attributes:
      schema: references point to its `#/$defs/0`, `1`, ... Properties keep their order, in which they are generated.
      paths: the JSON pointers in the given schema, by `id` of the objects in this one.
    """

    schema: dict[str, Any]
    paths: dict[int, str]


def rewrite(schema: Any) -> Rewritten:
    """An equivalent schema, or a stricter one, that llguidance enforces exactly.

    Raises:
      SchemaError: malformed, not supported, or nothing satisfies it.
    """
    return _Rewriter(schema).run()


class _Rewriter:
    def __init__(self, root: Any):
        self._root = root
        self._base = ""
        self._draft = 2020
        self._anchors: dict[str, str] | None = None  # names to paths, found when the first is asked for
        self._names: dict[str, str] = {}  # definitions by path
        self._defs: dict[str, Any] = {}
        self._paths: dict[int, str] = {}
        self._num_schemas = 0
        self._depth = 0

    def run(self) -> Rewritten:
        if isinstance(self._root, dict):
            self._read_header(self._root)
        result = self.schema(self._root, "#")
        if result is False:
            raise SchemaError("#", "false allows nothing")
        result = {} if result is True else result
        paths = self._paths | {id(result): "#"}
        if not close_endless(result, self._defs):
            raise SchemaError("#", "no finite value satisfies it")
        if self._defs:
            result["$defs"] = self._defs
        return Rewritten(result, paths)

    def _read_header(self, root: Mapping[str, Any]) -> None:
        base = root.get("$id", root.get("id", ""))
        self._base = base.rstrip("#") if isinstance(base, str) else ""
        if "$schema" in root:
            draft = _DRAFTS.get(text(root["$schema"], "#/$schema").rstrip("#"))
            if draft is None:
                raise SchemaError("#/$schema", f"{quoted(root['$schema'])} is no draft from 4 to 2020-12")
            self._draft = draft

    def schema(self, node: Any, path: str) -> Any:
        """Rewrites one schema and those within."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise SchemaError(path, f"a schema must be an object or a boolean, not {quoted(node)}")
        self._num_schemas += 1
        if self._depth >= MAX_DEPTH:
            raise SchemaError(path, f"too complex: more than {MAX_DEPTH} levels of schemas")
        if path.count("/") > MAX_NESTED:
            raise SchemaError(path, f"too complex: more than {MAX_NESTED} brackets, one in another")
        if self._num_schemas > MAX_SUBSCHEMAS:
            raise SchemaError(path, f"too complex: more than {MAX_SUBSCHEMAS} schemas")
        self._depth += 1
        try:
            return self._object(node, path)
        finally:
            self._depth -= 1

    def _object(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        if path != "#" and isinstance(node.get("$id"), str):
            raise SchemaError(child(path, "$id"), "embedded schema resources are not supported")
        plain: dict[str, Any] = {}
        nested: dict[str, Any] = {}
        for key, value in node.items():
            where = child(path, key)
            if key in PLAIN:
                if not self._asserts_nothing(key, value):
                    plain[key] = PLAIN[key](value, where)
            elif key in _UNSUPPORTED:
                if not _UNSUPPORTED[key](value, node):
                    raise SchemaError(where, "not supported")
            elif key == "$ref":
                nested[key] = self._ref(value, where)
            elif key in ("properties", "patternProperties"):
                plain[key] = self._map(value, where)
            elif key == "additionalProperties":
                plain[key] = self.schema(value, where)
            elif key in ("allOf", "anyOf", "oneOf"):
                nested[key] = self._list(value, where)
        plain |= self._items(node, path)
        conditions = self._dependencies(node, path)
        if conditions:
            nested["allOf"] = nested.get("allOf", []) + conditions
        for key in ("const", "enum"):  # llguidance applies them like allOf: after all others
            if key in plain:
                nested[key] = plain.pop(key)
        self._check_object(plain, path)
        result = plain | nested
        self._paths[id(result)] = path
        return result

    def _asserts_nothing(self, key: str, value: Any) -> bool:
        """A format that is an annotation only, and a bound of draft 4 that is not exclusive."""
        is_exclusive = key in ("exclusiveMinimum", "exclusiveMaximum")
        return (key == "format" and isinstance(value, str) and value not in FORMATS) or (
            is_exclusive and self._draft == 4 and value is False
        )

    def _map(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise SchemaError(path, f"must be an object of schemas, not {quoted(value)}")
        if path.endswith("/patternProperties"):
            return {
                PLAIN["pattern"](key, child(path, key)): self.schema(sub, child(path, key))
                for key, sub in value.items()
            }
        return {key: self.schema(sub, child(path, key)) for key, sub in value.items()}

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise SchemaError(path, f"must be a list of schemas, not {quoted(value)}")
        return [self.schema(sub, child(path, i)) for i, sub in enumerate(value)]

    def _items(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        """`items` and `prefixItems`; until 2019-09 these were called `additionalItems` and `items`."""
        is_list = isinstance(node.get("items"), list)
        if self._draft >= 2020:
            if is_list:
                raise SchemaError(child(path, "items"), "must be a schema; a list of schemas is called prefixItems")
            names = {"prefixItems": "prefixItems", "items": "items"}
        elif is_list:
            names = {"items": "prefixItems", "additionalItems": "items"}
        else:
            names = {"items": "items"}
        result: dict[str, Any] = {}
        for name, new_name in names.items():
            if name in node and node[name] != []:
                read = self._list if new_name == "prefixItems" else self.schema
                result[new_name] = read(node[name], child(path, name))
        return result

    def _dependencies(self, node: Mapping[str, Any], path: str) -> list[Any]:
        """dependentRequired, dependentSchemas and the older dependencies: a property is absent, or more must hold."""
        conditions = []
        for key in ("dependentRequired", "dependentSchemas", "dependencies"):
            if key not in node:
                continue
            where = child(path, key)
            if not isinstance(node[key], dict):
                raise SchemaError(where, f"must be an object, not {quoted(node[key])}")
            for name, value in node[key].items():
                at = child(where, name)
                if key == "dependentRequired" or (key == "dependencies" and isinstance(value, list)):
                    consequence: Any = {"required": PLAIN["required"](value, at)}
                else:
                    consequence = self.schema(value, at)
                present = {"type": "object", "required": [name]}
                absent = {"properties": {name: False}}
                conditions.append({"anyOf": [{"allOf": [present, consequence]}, absent]})
        return conditions

    def _check_object(self, plain: Mapping[str, Any], path: str) -> None:
        """What llguidance cannot hold of an object as a whole."""
        required = plain.get("required", ())
        if plain.get("minProperties", 0) > len(required) + 1:
            # The names of additional properties may repeat, and a repeated one counts once.
            raise SchemaError(
                child(path, "minProperties"), "not supported beyond one more than the required properties"
            )
        if len(plain.get("properties", {})) > len(required) + MAX_OPTIONAL:
            raise SchemaError(child(path, "properties"), f"too complex: more than {MAX_OPTIONAL} optional properties")

    def _ref(self, value: Any, path: str) -> str:
        target = self._resolve(text(value, path), path)
        if target not in self._names:
            name = self._names[target] = str(len(self._names))
            self._defs[name] = self.schema(self._at(target, path), target)
        return f"#/$defs/{self._names[target]}"

    def _resolve(self, reference: str, path: str) -> str:
        """The path of a reference's target in this document."""
        url, _, fragment = reference.partition("#")
        if url and urllib.parse.urljoin(self._base, url) != self._base:
            raise SchemaError(path, f"{quoted(reference)} is outside this schema; remote references are not supported")
        fragment = urllib.parse.unquote(fragment)
        if not fragment or fragment.startswith("/"):
            return "#" + fragment
        if self._anchors is None:
            self._anchors = dict(_anchors(self._root, "#", 0))
        if fragment not in self._anchors:
            raise SchemaError(path, f"{quoted(reference)} is not in this schema")
        return self._anchors[fragment]

    def _at(self, target: str, path: str) -> Any:
        node = self._root
        for part in target.split("/")[1:]:
            if node is not self._root and isinstance(node, dict) and isinstance(node.get("$id"), str):
                raise SchemaError(path, "references into embedded schema resources are not supported")
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise SchemaError(path, f"{quoted(target)} is not in this schema")
        return node


def _anchors(node: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """Names that `$anchor` gives to schemas of this document, with their paths."""
    if not isinstance(node, dict) or depth > MAX_DEPTH or (depth and isinstance(node.get("$id"), str)):
        return
    for key in ("$anchor", "$dynamicAnchor"):
        if isinstance(node.get(key), str):
            yield node[key], path
    for key in (*_MAPS, *_LISTS, *_SINGLE):
        value = node.get(key)
        where = child(path, key)
        if key in _MAPS and isinstance(value, dict):
            members = [(child(where, name), sub) for name, sub in value.items()]
        elif isinstance(value, list):
            members = [(child(where, i), sub) for i, sub in enumerate(value)]
        else:
            members = [(where, value)]
        for at, sub in members:
            yield from _anchors(sub, at, depth + 1)
