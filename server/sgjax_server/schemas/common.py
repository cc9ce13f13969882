"""What the request schemas share: strict types, and one rule for fields that sgjax does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator

from sgjax.types import RequestError


def _encodable(text: str) -> str:
    """Refuses lone surrogates, which JSON can write but no answer could repeat."""
    text.encode()
    return text


RequestId = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_encodable)]
"""A request's id from the client, echoed in the answer."""


class ApiModel(BaseModel):
    """A request body. Numbers are not read from strings, nor integers from booleans.

    A field that is not declared is refused by name, since ignoring it could change the answer, except where it is in
    `IGNORED` (it never affects the answer), is null, false or empty, or has its value in `NEUTRAL`.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

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
