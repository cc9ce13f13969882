"""Reading a sentencepiece `tokenizer.model` (Llama 2, Mistral) without the sentencepiece and protobuf packages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sgjax.text.vocabulary import add_markup, sentencepiece_bpe

# Field numbers and enum values of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _UNK_ID = 3, 40
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 2, 3, 4
_BPE = 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # GGUF's token types are the same numbers
SPECIAL = (UNKNOWN, CONTROL)


def read_sentencepiece(path: Path) -> Tokenizer:
    """The fast tokenizer equal to a sentencepiece BPE model that changes no text, as Llama 2's.

    Raises:
      ValueError: a damaged file, or a kind of model that is not served (unigram; Unicode normalisation).
    """
    pieces, trainer, normalizer = [], {}, {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == _PIECES:
                pieces.append(dict(_fields(value)))
            elif field == _TRAINER:
                trainer = dict(_fields(value))
            elif field == _NORMALIZER:
                normalizer = dict(_fields(value))
        names = [piece[_PIECE].decode() for piece in pieces]
    except (IndexError, KeyError, UnicodeDecodeError, struct.error, TypeError) as error:
        raise ValueError(f"{path} is not a sentencepiece model: {error!r}") from error
    if not names:
        raise ValueError(f"{path} is not a sentencepiece model: it has no pieces")
    if trainer.get(_MODEL_TYPE, 1) != _BPE or normalizer.get(_CHARSMAP) or normalizer.get(_REMOVE_EXTRA_WHITESPACES, 1):
        raise ValueError(
            f"{path} is not a plain sentencepiece BPE model; make a tokenizer.json beside it, with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    types = [piece.get(_TYPE, NORMAL) for piece in pieces]
    tokenizer = sentencepiece_bpe(
        names,
        [struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0] for piece in pieces],
        is_word=[kind == NORMAL for kind in types],
        unk_id=trainer.get(_UNK_ID, 0),
        prefix_space=bool(normalizer.get(_ADD_DUMMY_PREFIX, 1)),
    )
    add_markup(
        tokenizer,
        [name for name, kind in zip(names, types, strict=True) if kind in SPECIAL],
        [name for name, kind in zip(names, types, strict=True) if kind == USER_DEFINED],
    )
    return tokenizer


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: integers, or bytes for everything else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            value, at = message[at : at + length], at + length
        else:
            raise IndexError(f"wire type {kind}")
        if at > len(message):
            raise IndexError("the file ends early")
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
