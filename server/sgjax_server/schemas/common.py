"""What the request schemas share: strict types, and one rule for fields that sgjax does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from sgjax.types import RequestError

RequestId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A request's id from the client, echoed in the answer."""


def _form(value: Any) -> str:
    """Which member of a union of prompts is meant, from the first item: trying all on a long prompt takes ms."""
    if isinstance(value, list):
        return {str: "texts", list: "id lists"}.get(type(value[0]) if value else int, "ids")
    return "text"


def _id_form(value: Any) -> str:
    return "id lists" if isinstance(value, list) and value and isinstance(value[0], list) else "ids"


_Texts = Annotated[list[str], Field(fail_fast=True), Tag("texts")]
_Ids = Annotated[list[int], Field(fail_fast=True), Tag("ids")]
_IdLists = Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True), Tag("id lists")]
TokenIds = Annotated[_Ids | _IdLists, Discriminator(_id_form)]
"""The token ids of one prompt, or of each of several."""

Prompt = Annotated[Annotated[str, Tag("text")] | _Texts | _Ids | _IdLists, Discriminator(_form)]
"""One prompt or several, as text or as token ids."""


def _describe(schema: dict[str, Any], model: type[ApiModel]) -> None:
    """Says in a JSON schema what `ApiModel` makes of fields that are not declared."""
    schema["additionalProperties"] = False
    properties = schema.setdefault("properties", {})
    for name in sorted(model.IGNORED):
        properties.setdefault(name, {"description": "Ignored: it does not change the answer."})
    for name, values in model.NEUTRAL.items():
        properties.setdefault(name, {"enum": list(values), "description": "Nothing else is supported."})
    if model.EXAMPLES:
        schema["examples"] = list(model.EXAMPLES)


class ApiModel(BaseModel):
    """A request body. Numbers are not read from strings, nor integers from booleans.

    A field that is not declared is refused by name, since ignoring it could change the answer, except where it is in
    `IGNORED` (it never affects the answer), is null, false or empty, or has its value in `NEUTRAL`. `EXAMPLES` are
    for the OpenAPI document.
    """

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_describe)

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            asks_nothing = value is None or value is False or value in ("", [], {})
            if not (asks_nothing or name in self.IGNORED or value in self.NEUTRAL.get(name, ())):
                raise RequestError(name, "not supported")
        return self


def namespace(cache_salt: str | None, extra_key: str | None) -> str:
    """The radix tree's namespace: requests share prefixes only when both fields are equal."""
    return f"{cache_salt or ''}\0{extra_key or ''}" if cache_salt or extra_key else ""
