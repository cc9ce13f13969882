"""What a request says, as llguidance's grammar text."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import llguidance

from sgjax.errors import RequestError
from sgjax.grammar import gbnf, structural_tag
from sgjax.grammar.messages import plain_message
from sgjax.grammar.schema import Rewritten, rewrite
from sgjax.grammar.schema_errors import locate
from sgjax.grammar.schema_path import SchemaError, child
from sgjax.grammar.whitespace import with_options
from sgjax.sampling_params import GrammarSpec

ANY_JSON = "$$ANY$$"  # SGLang's way to ask for JSON without a schema
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
MAX_REGEX_LEN = 1 << 16  # characters; a longer literal alone takes llguidance a second for one mask
MAX_CHOICES_LEN = 1 << 18  # characters of all
# Set by measurement, see tests/grammar/test_bombs.py: what a compile and a step may cost at most.
LIMITS = llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=50_000)


class Source:
    """A grammar in llguidance's notation, and the way back from its complaints to what the user wrote.

    Attributes:
      text: for `LLMatcher`.
    """

    def __init__(self, spec: GrammarSpec, tokenizer: llguidance.LLTokenizer):
        """Raises `RequestError`: with the field's name, and for a schema the keyword's path."""
        self._spec = spec
        self._schemas: list[tuple[str, Rewritten]] = []  # with the path of each in the request's field
        try:
            self.text = self._read(spec, tokenizer)
        except SchemaError as error:
            raise RequestError(spec.kind, str(error)) from None
        except RecursionError:
            raise RequestError(spec.kind, "too complex: nested too deeply") from None

    def _read(self, spec: GrammarSpec, tokenizer: llguidance.LLTokenizer) -> str:
        if spec.kind == "json_schema":
            schema = {} if spec.text == ANY_JSON else parse_json(spec.text)
            return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(self._schema(schema, "")))
        if spec.kind == "regex":
            if len(spec.text) > MAX_REGEX_LEN:
                raise RequestError("regex", f"too complex: more than {MAX_REGEX_LEN} characters")
            if (len(spec.text) - len(spec.text.rstrip("\\"))) % 2:  # llguidance would drop it
                raise RequestError("regex", "ends in a backslash that escapes nothing")
            return llguidance.LLMatcher.grammar_from_regex(spec.text)
        if spec.kind == "ebnf":
            return gbnf.to_lark(spec.text)
        if spec.kind == "structural_tag":
            return structural_tag.to_lark(parse_json(spec.text), self._schema, tokenizer)
        return _choices(spec.text)

    def _schema(self, schema: Any, where: str) -> dict[str, Any]:
        """A schema ready for llguidance; `where` is its JSON pointer in the request's field."""
        try:
            rewritten = rewrite(schema)
            options = schema.get("x-guidance", {}) if isinstance(schema, dict) else {}
            result = with_options(rewritten.schema, options)
        except SchemaError as error:
            raise SchemaError("#" + where + error.path[1:], error.message) from None
        self._schemas.append((where, rewritten))
        return result

    def fail(self, message: str) -> NoReturn:
        """Raises `RequestError` for llguidance's complaint about `text`."""
        for where, rewritten in self._schemas:
            if found := locate(rewritten, LIMITS):
                path, complaint = found
                raise RequestError(self._spec.kind, f"#{where}{path[1:]}: {plain_message(complaint)}")
        raise RequestError(self._spec.kind, plain_message(message))


def parse_json(text: str) -> Any:
    """Raises `SchemaError` with line and column."""

    def no_constant(name: str) -> NoReturn:
        raise SchemaError("#", f"{name} is no JSON")

    try:
        value = json.loads(text, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise SchemaError("#", f"no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except SchemaError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise SchemaError("#", f"no JSON that can be read: {error}") from None
    if _SURROGATE.search(text):
        _check_text(value, "#")
    return value


def _check_text(value: Any, path: str) -> None:
    """Refuses what JSON can write and UTF-8 cannot: half of a surrogate pair."""
    if isinstance(value, str) and (half := _HALF.search(value)):
        raise SchemaError(path, f"{half[0]!r} is no character, but half of a surrogate pair")
    if isinstance(value, dict):
        for key, member in value.items():
            _check_text(key, path)
            _check_text(member, child(path, key))
    elif isinstance(value, list):
        for i, member in enumerate(value):
            _check_text(member, child(path, i))


def _choices(text: str) -> str:
    if len(text) > MAX_CHOICES_LEN:
        raise RequestError("choices", f"too complex: more than {MAX_CHOICES_LEN} characters together")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
