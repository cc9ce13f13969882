"""Texts and bytes of single tokens, for log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.text import Tokenizer


class TokenTexts:
    """What each token contributes to a text, as APIs show it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """The token's text; bytes that are no character alone show as U+FFFD."""
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")

    def utf8(self, token_id: int) -> list[int]:
        """The token's bytes, exact also where it holds a part of a character."""
        return list(self._tokenizer.token_bytes(token_id))
