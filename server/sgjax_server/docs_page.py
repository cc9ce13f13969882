"""The OpenAPI document as a page: plain HTML that needs no scripts, from here or elsewhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

_TEMPLATES = Path(__file__).parent / "templates"
_REF = "#/components/schemas/"


def docs_page(document: Mapping[str, Any]) -> str:
    """HTML of a document that `openapi_document` made."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "type": type_of,
        "prose": _prose,
        "example": functools.partial(json.dumps, indent=2, ensure_ascii=False),
    }
    operations = [
        {**operation, "method": method.upper(), "path": path}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return environment.get_template("docs.html.jinja").render(document=document, operations=operations)


def type_of(schema: Mapping[str, Any]) -> Markup:
    """What a schema allows, in words; what it refers to is a link into the page."""
    match schema:
        case {"$ref": str(reference)}:
            name = reference.removeprefix(_REF)
            return Markup('<a href="#{0}">{0}</a>').format(name)
        case {"anyOf": members} | {"oneOf": members}:
            return _joined(" or ", map(type_of, members))
        case {"contentSchema": content}:
            return Markup("stream of {}").format(type_of(content))
        case {"enum": values}:
            return _joined(" or ", map(_value, values))
        case {"const": value}:
            return _value(value)
        case {"type": "array", "prefixItems": items}:
            return Markup("[{}]").format(_joined(", ", map(type_of, items)))
        case {"type": "array", "items": items}:
            return Markup("list of {}").format(type_of(items))
        case {"type": "object", "additionalProperties": Mapping() as values}:
            return Markup("object of {}").format(type_of(values))
        case _:
            return escape(schema.get("type", "anything"))


def _value(value: Any) -> Markup:
    return Markup("<code>{}</code>").format(json.dumps(value, ensure_ascii=False))


def _joined(separator: str, parts: Iterable[Markup]) -> Markup:
    return Markup(separator).join(parts)


def _prose(text: str) -> Markup:
    """A description, in which backquotes mark code."""
    code = Markup("<code>{}</code>")
    return _joined("", (code.format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))))
