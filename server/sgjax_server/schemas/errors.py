"""Bodies of errors, as the clients of each API parse them."""

from __future__ import annotations

from typing import Literal, TypedDict


class ErrorDetails(TypedDict, total=False):
    """What is said besides of a program that failed: the variable that it was about to set, and in which state."""

    variable: str | None
    state: int


class OpenAIErrorFields(ErrorDetails):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """OpenAI's form, which SGLang's own routes have too. `param` is the request's field at fault."""

    error: OpenAIErrorFields


class AnthropicErrorFields(TypedDict):
    type: str
    message: str


class AnthropicError(TypedDict):
    """Anthropic's form."""

    type: Literal["error"]
    error: AnthropicErrorFields


class OllamaError(TypedDict):
    """Ollama's form."""

    error: str
