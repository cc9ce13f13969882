"""The tools of a turn: what they are, and how a conversation shows them where the chat template does not."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from sgjax.types import RequestError

_NAME = re.compile(r"[\w.:/-]{1,128}", re.ASCII)

# Keywords beside `properties` that say, or may say, which others there are.
_OPENING = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf"}
    | {"if", "dependentSchemas", "dependencies", "propertyNames"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments; None takes none.

    `strict`: calls follow the schema whatever the model, by a grammar.

    Raises:
      RequestError: a name or a schema that no call could have.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise RequestError("tools", f"the name {self.name!r} must be 1 to 128 of A-Z, a-z, 0-9, _, -, ., : and /")
        if (self.parameters or {}).get("type", "object") != "object":
            raise RequestError("tools", f"the parameters of {self.name!r} must have the type 'object'")

    @property
    def schema(self) -> dict[str, Any]:
        """The schema that arguments are made to follow: an object, with the arguments that are named and no others."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return _closed({"type": "object", **self.parameters})

    def for_template(self) -> dict[str, Any]:
        """In OpenAI's form, which chat templates read."""
        parameters = self.parameters if self.parameters is not None else {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but the named ones, where it leaves that open.

    Most authors of tools mean that, and a small model that may invent arguments invents them without end. Objects that
    are put together from several schemas stay open, since closed ones would exclude each other.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _closed(member) for name, member in schema[key].items()}
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "properties" in schema:
        if not schema.keys() & _OPENING:
            closed["additionalProperties"] = False
    elif isinstance(schema.get("anyOf"), list):
        closed["anyOf"] = [_closed(member) for member in schema["anyOf"]]
    return closed


@dataclasses.dataclass(frozen=True)
class ToolChoice:
    """Whether the model calls tools: as it likes, never, at least once, or the one with this `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None

    def check(self, tools: Sequence[Tool]) -> None:
        """Raises RequestError where the tools do not allow it, or two of them share a name."""
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise RequestError("tools", f"two tools have the name {max(names, key=names.count)!r}")
        if self.mode in ("required", "named") and not tools:
            raise RequestError("tool_choice", "needs tools")
        if self.mode == "named" and self.name not in names:
            raise RequestError("tool_choice", f"no tool has the name {self.name!r}")


AUTO = ToolChoice()


def describe_tools(messages: Iterable[Any], tools: Sequence[Tool], write_call: Callable[[str, str], str]) -> list[Any]:
    """The conversation for a chat template that knows no tools: described by the system, calls and results as text.

    Args:
      write_call: the text of a call, from a tool's name and arguments in JSON.
    """
    shown = [_as_text(message, write_call) if isinstance(message, Mapping) else message for message in messages]
    if not tools:
        return shown
    example = write_call("NAME", '{"ARGUMENT": "VALUE"}')
    lines = [json.dumps(tool.for_template()["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join(["You can call these functions:", "<tools>", *lines, "</tools>", "To call one, write:", example])
    first = shown[0] if shown else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return [{**first, "content": _around(first.get("content"), "", "\n\n" + text)}, *shown[1:]]
    return [{"role": "system", "content": text}, *shown]


def _as_text(message: Mapping[str, Any], write_call: Callable[[str, str], str]) -> dict[str, Any]:
    """A message without parts that only some templates know."""
    if message.get("role") == "tool":
        content = _around(message.get("content"), "<tool_response>\n", "\n</tool_response>")
        return {"role": "user", "content": content}
    shown = dict(message)
    calls = shown.pop("tool_calls", None)
    if isinstance(calls, list) and calls:
        texts = [write_call(*_name_and_arguments(call)) for call in calls]
        shown["content"] = _around(shown.get("content"), "", "\n".join(["", *texts]))
    return shown


def _name_and_arguments(call: Any) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError("messages", "a tool call has no function with a name")
    arguments = function.get("arguments", "{}")
    return function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _around(content: Any, before: str, after: str) -> Any:
    """A message's content with text before and after it."""
    if isinstance(content, list):
        ends = ([{"type": "text", "text": text.strip()}] if text else [] for text in (before, after))
        first, last = ends
        return [*first, *content, *last]
    if content is not None and not isinstance(content, str):
        return content  # the template's renderer refuses it
    return (before + (content or "") + after).strip()
