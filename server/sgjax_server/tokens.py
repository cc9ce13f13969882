"""Texts and bytes of single tokens, for log-probabilities."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.text import Tokenizer


class TokenTexts:
    """What each token contributes to a text. Remembers what it was asked for, so a vocabulary bounds its size."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # SentencePiece tokenizers drop a space at the start of a text, so tokens are decoded behind another one.
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        self._anchor_len = len(tokenizer.decode(self._anchor, skip_special_tokens=False))
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """The token's text; bytes that are no character alone show as U+FFFD."""
        known = self._texts.get(token_id)
        if known is None:
            decoded = self._tokenizer.decode([*self._anchor, token_id], skip_special_tokens=False)
            known = self._texts[token_id] = decoded[self._anchor_len :]
        return known

    def utf8(self, token_id: int) -> list[int]:
        """The token's bytes, exact also where it holds a part of a character."""
        text = self.text(token_id)
        if "\ufffd" in text:
            spelled = self._tokenizer.id_to_token(token_id) or ""
            if match := re.fullmatch(r"<0x([0-9A-F]{2})>", spelled):
                return [int(match[1], 16)]
            if all(char in _BYTE_OF_CHAR for char in spelled):
                return [_BYTE_OF_CHAR[char] for char in spelled]
        return list(text.encode())


def _byte_level_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes (GPT-2's bytes_to_unicode): printable ones as such, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_level_alphabet()
