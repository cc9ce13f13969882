"""The OpenAPI document: FastAPI's, and in it what holds for every route, its errors above all."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from sgjax_server.errors import error_shape
from sgjax_server.middleware.access import OPEN_PATHS
from sgjax_server.schemas.answers.anthropic import MessageEvent
from sgjax_server.schemas.answers.native import Generated
from sgjax_server.schemas.answers.ollama import OllamaChat, OllamaGenerated
from sgjax_server.schemas.answers.openai import ChatCompletionChunk, CompletionChunk
from sgjax_server.schemas.answers.program import ProgramEvent
from sgjax_server.schemas.answers.responses import ResponseEvent

EVENTS = (
    *(ChatCompletionChunk, CompletionChunk, ResponseEvent),
    *(MessageEvent, OllamaChat, OllamaGenerated, Generated, ProgramEvent),
)
"""What streams consist of."""

_DESCRIPTION = """\
One model, served over the APIs of OpenAI, Anthropic, Ollama and SGLang. Whichever model a request names, the served one
answers. A field that is neither described nor empty is refused by name.
"""

_TAGS = {
    "openai": "OpenAI's chat completions, completions and Responses.",
    "models": "The served model, as OpenAI's clients list it.",
    "anthropic": "Anthropic's Messages.",
    "ollama": "Ollama's API. A body is JSON whatever its type is said to be.",
    "native": "SGLang's own API: generation, sessions, and the reading of what was generated before.",
    "tokens": "Texts to token ids, and back.",
    "scoring": "How likely given continuations are.",
    "programs": "Programs of the frontend language, run next to the engine.",
    "health": "Probes. They need no key.",
    "info": "The server, its model and its load.",
    "control": "What changes the server for everybody. Where there is an admin key, these routes need it.",
    "unserved": "Routes that say that this server has no such model.",
}

_ERRORS = {
    "4XX": "The request is refused: 400 a bad field (its name is in the message), 401 no key, 403 another site's page, "
    "404 not there, 408 its body came too late, 413 too large, 429 too busy (with `Retry-After`).",
    "5XX": "503: the engine is loading, or it failed while it worked on this (with `Retry-After`). 504: it took "
    "longer than the server allows, and would again (`X-Should-Retry: false`). 501: not implemented. 500: a bug.",
}

_KEYS = {
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The server's API key, where it has one. The admin key does as well.",
    },
    "keyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "Either key, as Anthropic's clients send it.",
    },
}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of an application whose routes are all there.

    The summary of a route is the first sentence of its docstring. Errors have the shape of the route's API.
    """
    tags = [{"name": name, "description": text} for name, text in _TAGS.items()]
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes, tags=tags)
    schemas = document["components"]["schemas"]
    for event in EVENTS:
        _reference(event, schemas)
    document["components"]["securitySchemes"] |= _KEYS
    for path, operations in document["paths"].items():
        content = {"application/json": {"schema": _reference(error_shape(path).schema, schemas)}}
        for operation in operations.values():
            _summarise(operation)
            _add_errors(operation["responses"], content)
            if path not in OPEN_PATHS:  # those that control the server name their key themselves
                operation["security"] = [*operation.get("security", [{"apiKey": []}]), {"keyHeader": []}]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which are not sent
        schemas.pop(unused, None)
    return document


def _summarise(operation: dict[str, Any]) -> None:
    summary, _, rest = operation.pop("description", "").replace("\n", " ").partition(". ")
    operation["summary"] = summary.removesuffix(".")
    if rest:
        operation["description"] = rest.strip()


def _reference(kind: Any, schemas: dict[str, Any]) -> dict[str, str]:
    """A reference to the schema of a type that answers hold, which is put among the schemas."""
    reference = f"#/components/schemas/{kind.__name__}"
    if kind.__name__ not in schemas:
        schema = TypeAdapter(kind).json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        if schema != {"$ref": reference}:  # the name of a union refers to its definition
            schemas[kind.__name__] = schema
    return {"$ref": reference}


def _add_errors(responses: dict[str, Any], content: dict[str, Any]) -> None:
    """The errors that every route may answer with, and the body of those that it names itself."""
    responses.pop(str(HTTPStatus.UNPROCESSABLE_ENTITY.value), None)  # FastAPI's status; here it is 400
    for status, description in _ERRORS.items():
        responses[status] = {"description": description, "content": content}
    for status, response in responses.items():
        if status[0] in "45" and not any(media["schema"] for media in response.get("content", {}).values()):
            response["content"] = content
