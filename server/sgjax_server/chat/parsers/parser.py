"""From the text of an answer, as it arrives, to pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Protocol

from sgjax_server.chat.parsers.pieces import Piece, Reasoning, Text
from sgjax_server.chat.parsers.source import Reading, Source

Format = Callable[[Source], Reading[None]]


class ToolParser(Protocol):
    """The format of calls of `tools`, with the text around them."""

    def __call__(self, source: Source, tools: Set[str]) -> Reading[None]: ...


class Parser:
    """Splits one text by a format, incrementally. The pieces do not depend on how the text was cut, once joined.

    Nothing raises: what is malformed becomes text.
    """

    def __init__(self, format: Format):
        self._source = Source()
        self._pieces = format(self._source)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that became certain."""
        self._source.push(text)
        return self._take()

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        self._source.complete()
        return self._take()

    def _take(self) -> list[Piece]:
        return list(iter(functools.partial(next, self._pieces, None), None))


class AnswerParser:
    """Splits one answer into reasoning, text and calls.

    White space that separates these is dropped, and so is white space around reasoning.

    Args:
      formats: each reads the text that the one before leaves.
    """

    def __init__(self, formats: Sequence[Format]):
        self._parsers = [Parser(format) for format in formats]
        self._seams = _Seams()

    def feed(self, text: str) -> list[Piece]:
        """The pieces that became certain."""
        pieces: list[Piece] = [Text(text)]
        for parser in self._parsers:
            pieces = _through(parser, pieces)
        return list(self._seams.feed(pieces))

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        pieces: list[Piece] = []
        for parser in self._parsers:
            pieces = [*_through(parser, pieces), *parser.finish()]
        return [*self._seams.feed(pieces), *self._seams.finish()]


def _through(parser: Parser, pieces: Iterable[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        found += parser.feed(piece.text) if isinstance(piece, Text) else [piece]
    return found


class _Seams:
    """Drops white space between pieces of different kinds. It is held back until the next piece shows which it is."""

    def __init__(self) -> None:
        self._kind: type | None = None
        self._is_bare = False  # no text since the kind began
        self._spaces = ""

    def feed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if not isinstance(piece, Text | Reasoning):
                self._kind, self._spaces = type(piece), ""
                yield piece
                continue
            if type(piece) is not self._kind:
                self._is_bare = self._kind is not None or isinstance(piece, Reasoning)
                self._kind, self._spaces = type(piece), ""
            text = piece.text.lstrip() if self._is_bare else piece.text
            shown = text.rstrip()
            if shown:
                yield type(piece)(self._spaces + shown)
                self._is_bare = False
                self._spaces = ""
            self._spaces += text[len(shown) :]

    def finish(self) -> Iterator[Piece]:
        if self._spaces and self._kind is Text and not self._is_bare:
            yield Text(self._spaces)
