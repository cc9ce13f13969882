"""What an answer must follow: OpenAI's `response_format`, and the fields that SGLang and vLLM have for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sgjax.types import RequestError
from sgjax_server.schemas.common import ApiModel

JsonSchema = dict[str, Any] | bool


class Grammar(NamedTuple):
    """A grammar that a request asks for: the request's field, and the sampling parameter with its value."""

    field: str
    param: str
    value: Any


class NamedSchema(ApiModel):
    """A JSON schema. The answer always follows it, whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(ApiModel):
    """OpenAI's formats, and SGLang's structural tag: `structures` with `triggers`, or `format`."""

    FIELDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": (),
        "json_object": (),
        "json_schema": ("json_schema",),
        "structural_tag": ("structures", "triggers", "format"),
    }

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NamedSchema | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _only_what_the_type_has(self) -> Self:
        for name in (name for names in self.FIELDS.values() for name in names):
            if getattr(self, name) is not None and name not in self.FIELDS[self.type]:
                raise RequestError(name, f"does not go with the type {self.type!r}")
        if self.type == "json_schema" and self.json_schema is None:
            raise RequestError("json_schema", "is missing")
        return self

    def grammars(self) -> Iterator[Grammar]:
        """At most one: text is free."""
        if self.type == "json_object":
            yield Grammar("response_format", "json_schema", {"type": "object"})
        elif self.json_schema is not None:
            yield Grammar("response_format", "json_schema", self.json_schema.schema_)
        elif self.type == "structural_tag":
            given = {name: getattr(self, name) for name in self.FIELDS[self.type] if getattr(self, name) is not None}
            yield Grammar("response_format", "structural_tag", {"type": self.type, **given})


class StructuredOutputs(ApiModel):
    """vLLM's structured outputs; one of these."""

    json_: JsonSchema | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None

    def grammars(self) -> Iterator[Grammar]:
        """Those that are given."""
        values = {
            "json_schema": {"type": "object"} if self.json_object else self.json_,
            "regex": self.regex,
            "choices": self.choice,
            "ebnf": self.grammar,
            "structural_tag": self.structural_tag,
        }
        yield from (Grammar("structured_outputs", param, value) for param, value in values.items() if value is not None)


class GrammarFields(ApiModel):
    """The fields of chat completions and completions that say what the answer must follow; one of them at most."""

    IGNORED = frozenset({"guided_decoding_backend"})

    # Those with a sampling parameter of the same meaning.
    ALIASES: ClassVar[Mapping[str, str]] = {
        "json_schema": "json_schema",
        "regex": "regex",
        "ebnf": "ebnf",
        "structural_tag": "structural_tag",
        "choices": "choices",
        "guided_json": "json_schema",
        "guided_regex": "regex",
        "guided_choice": "choices",
        "guided_grammar": "ebnf",
    }

    response_format: ResponseFormat | None = None
    json_schema: JsonSchema | str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: dict[str, Any] | str | None = None
    choices: list[str] | None = None

    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must follow; None when it is free."""
        return next(self._grammars(), None)

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        first, second, *_ = *self._grammars(), None, None
        if first is not None and second is not None:
            if first.field == second.field:
                raise RequestError(first.field, f"holds both {first.param} and {second.param}")
            raise RequestError(second.field, f"cannot be combined with {first.field}")
        return self

    def _grammars(self) -> Iterator[Grammar]:
        for holder in (self.response_format, self.structured_outputs):
            if holder is not None:
                yield from holder.grammars()
        for field, param in self.ALIASES.items():
            if (value := getattr(self, field)) is not None:
                yield Grammar(field, param, value)
