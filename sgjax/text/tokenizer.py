"""The tokenizer: text to ids and back, on the `tokenizers` library alone.

Importing `transformers` for this would cost a second at every start; its fast tokenizers are this library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from sgjax.text.chat_template import ChatTemplate, Message
from sgjax.types import RequestError

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # sentencepiece's spelling of a single byte


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes in byte-level vocabularies: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


class Tokenizer:
    """A fast tokenizer with the facts that serving needs. Safe to share between threads.

    Made by `sgjax.text.load_tokenizer`.

    Args:
      backend: owned by this object from now on.
      special_tokens: by role: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
      eos_token_ids: every id that ends an answer; the `eos_token` is among them.
      chat_templates: Jinja text by name ("default", "tool_use"); may be empty.

    Attributes:
      vocab_size: ids are below it. A model's logits may be padded beyond.
      special_token_ids: ids of tokens that are markup, not text, hidden by `skip_special_tokens`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        eos_token_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
    ):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._id_of_role("bos_token")
        eos = self._id_of_role("eos_token")
        self.eos_token_ids = tuple(sorted({*eos_token_ids, *(() if eos is None else (eos,))}))
        added = backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._template = ChatTemplate(chat_templates, self.special_tokens) if chat_templates else None
        # An ordinary token: after it, decoders that drop the space at the start of a text keep it.
        self._anchor = self.encode("a", add_special_tokens=False)
        self._anchor_len = len(self.decode(self._anchor))
        self._token_bytes: dict[int, bytes] = {}

    def _id_of_role(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.token_to_id(token)

    @property
    def chat_template(self) -> str | None:
        """The default chat template's Jinja text."""
        return None if self._template is None else self._template.sources.get("default")

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The chat templates' Jinja text by name; empty where the model has none."""
        return {} if self._template is None else self._template.sources

    def template_reads(self, variable: str) -> bool:
        """Whether a chat template reads a variable, such as `tools`. Raises ValueError for one that is not Jinja."""
        return self._template is not None and self._template.reads(variable)

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return self._backend.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. `add_special_tokens` adds what the checkpoint puts around a text, such as BOS.

        Raises:
          RequestError: text that is not valid Unicode (lone surrogates).
        """
        return self._backend.encode(_checked(text), add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of many texts, over all cores."""
        checked = [_checked(text) for text in texts]
        encodings = self._backend.encode_batch_fast(checked, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary have no text."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token ("Ġhello"), not its text."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text that has begun; may be part of a character. Empty outside the vocabulary."""
        found = self._token_bytes.get(token_id)
        if found is None:
            found = self._token_bytes[token_id] = self._bytes_of(token_id)
        return found

    def _bytes_of(self, token_id: int) -> bytes:
        text = self.decode([*self._anchor, token_id], skip_special_tokens=False)[self._anchor_len :]
        if "\ufffd" in text:  # only the spelling tells which bytes these are
            spelled = self._backend.id_to_token(token_id) or ""
            if match := _BYTE_PIECE.fullmatch(spelled):
                return bytes.fromhex(match[1])
            if all(char in _BYTE_ALPHABET for char in spelled):
                return bytes(_BYTE_ALPHABET[char] for char in spelled)
        return text.encode()

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text for a conversation; see `ChatTemplate.render`.

        Raises:
          RequestError: there is no template, or the messages do not fit it.
        """
        if self._template is None:
            raise RequestError("messages", "the model has no chat template; give one with --chat-template")
        return self._template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )

    def encode_chat(self, messages: Sequence[Message], **kwargs: Any) -> list[int]:
        """Ids of `apply_chat_template`. Templates write BOS themselves, so none is added."""
        return self.encode(self.apply_chat_template(messages, **kwargs), add_special_tokens=False)


def _checked(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoder takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError("text", f"is not valid Unicode: {error.reason} at {error.start}") from None
    return text
