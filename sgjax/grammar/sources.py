"""What a request says, as llguidance's grammar text."""

from __future__ import annotations

import json

import llguidance

from sgjax.errors import RequestError
from sgjax.sampling_params import GrammarSpec


def to_source(spec: GrammarSpec) -> str:
    """llguidance's text of a grammar.

    Raises:
      RequestError: with the field's name, and for a schema the keyword's path.
    """
    if spec.kind == "json_schema":
        return llguidance.LLMatcher.grammar_from_json_schema(spec.text, defaults={"whitespace_flexible": False})
    if spec.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "ebnf":
        return llguidance.grammar_from("ebnf", spec.text)
    if spec.kind == "choices":
        return llguidance.grammar_from("choice", json.loads(spec.text))
    raise RequestError(spec.kind, "not supported yet")
