"""Text that is still arriving, read by generators that wait for what has not come yet."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Generator, Mapping

from sgjax_server.chat.parsers.pieces import Arguments, Piece, Text

type Reading[T] = Generator[Piece | None, None, T]
"""Gives pieces, or None to wait for more text; returns what was read."""

_WORD = re.compile(r"[\w.:/-]*")
_SCALAR = re.compile(r"[\w.+-]*")
_IN_STRING = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}


class Brackets:
    """The brackets of a language, by the opening one, and the quotes of its strings."""

    def __init__(self, closers: Mapping[str, str], quotes: str):
        self.closers = closers
        self.quotes = quotes
        special = "".join([*closers, *closers.values(), *quotes])
        self.others = re.compile(f"[^{re.escape(special)}]*")


# Nobody nests deeper, and what may have to be read again is not read endlessly.
MAX_DEPTH = 64

JSON = Brackets({"{": "}", "[": "]"}, '"')
PYTHON = Brackets({"{": "}", "[": "]", "(": ")"}, "\"'")


class Source:
    """A text of which more may come, and the place up to which it has been read.

    What was read since the last `take` can still be taken back, so that text which only looked like a call becomes text
    again. No decision depends on how the text was cut into pieces: a method waits until what it sees decides.
    """

    def __init__(self) -> None:
        self._text = ""  # from the last `take` on
        self._at = 0
        self._is_complete = False

    def push(self, text: str) -> None:
        """Adds text at the end."""
        self._text += text

    def complete(self) -> None:
        """Says that no more text comes."""
        self._is_complete = True

    @property
    def read(self) -> str:
        """What was read since the last `take`."""
        return self._text[: self._at]

    def take(self) -> str:
        """What was read since the last `take`; it cannot be taken back any more."""
        taken = self._text[: self._at]
        self._text = self._text[self._at :]
        self._at = 0
        return taken

    def back(self, length: int = 0) -> None:
        """Takes back what was read since the last `take`, except its first `length` characters."""
        self._at = length

    def give_back(self, length: int) -> Reading[None]:
        """Takes back all but the first `length` characters, which become text."""
        self.back(length)
        yield Text(self.take())

    def peek(self) -> Reading[str]:
        """The next character; empty at the end."""
        while self._at == len(self._text):
            if self._is_complete:
                return ""
            yield None
        return self._text[self._at]

    def literal(self, text: str) -> Reading[bool]:
        """Reads `text` if it comes next, else nothing."""
        while not self._text.startswith(text, self._at):
            if self._is_complete or not text.startswith(self._text[self._at :]):
                return False
            yield None
        self._at += len(text)
        return True

    def spaces(self) -> Reading[None]:
        """Reads white space."""
        while (yield from self.peek()).isspace():
            self._at += 1

    def word(self) -> Reading[str]:
        """Reads letters, digits and what else names are made of."""
        return (yield from self._run(_WORD))

    def closing(self, *marks: str) -> Reading[None]:
        """Drops the marks that come next, in this order; each may be missing, and white space may precede it."""
        for mark in marks:
            yield from self.spaces()
            if (yield from self.literal(mark)):
                self.take()
            else:
                self.back()

    def items(self, item: Callable[[], Reading[bool]], separator: str) -> Reading[bool]:
        """Reads one item or several. A separator without an item behind it is left unread. False when there is none."""
        yield from self.spaces()
        if not (yield from item()):
            return False
        while True:
            yield from self.spaces()
            if not (yield from self.literal(separator)):
                break
            yield from self.spaces()
            if not (yield from item()):
                break
        self.back()
        return True

    def until(self, marks: tuple[str, ...], kind: Callable[[str], Piece] = Text) -> Reading[str]:
        """Gives all text before the first of `marks` as pieces; reads the mark, and does not take it.

        No mark may begin with another one.

        Returns:
          The mark; empty when the text has ended without one.
        """
        search, prefixes = _searcher(marks)
        while True:
            found = search(self._text)
            self._at = found.start() if found else len(self._text)
            if not found and not self._is_complete:
                self._at -= _held(self._text, prefixes)
            if self._at:
                yield kind(self.take())
            if found:
                self._at = len(found[0])
                return found[0]
            if self._is_complete:
                return ""
            yield None

    def string(self) -> Reading[str | None]:
        """Reads a JSON string. None when there is none, or a bad one."""
        start = self._at
        if not (yield from self.literal('"')) or not (yield from self._string_rest('"')):
            return None
        try:
            return json.loads(self._text[start : self._at])
        except ValueError:
            return None

    def value(self) -> Reading[str | None]:
        """Reads a JSON value, of which only brackets and strings are checked. None when there is none."""
        start = self._at
        first = yield from self.peek()
        if first in JSON.closers:
            is_whole = yield from self.brackets(JSON)
        elif first == '"':
            is_whole = (yield from self.string()) is not None
        else:
            is_whole = bool((yield from self._run(_SCALAR)))
        return self._text[start : self._at] if is_whole else None

    def arguments(self) -> Reading[bool]:
        """Gives the JSON object that comes next as arguments, while it comes. What was read before it is dropped.

        Returns:
          False when a bracket does not fit, which is left unread, or the text has ended.
        """
        self.take()
        is_whole = yield from self.brackets(JSON, stream=True)
        if self._at:
            yield Arguments(self.take())
        return is_whole

    def brackets(self, kind: Brackets, *, stream: bool = False) -> Reading[bool]:
        """Reads from an opening bracket to its closing one, or up to one that does not fit: then False.

        Without `stream`, more than 64 levels do not fit either.

        Args:
          stream: give what is read as arguments, while it comes.
        """
        open_: list[str] = []
        while True:
            yield from self._run(kind.others, stream=stream)
            char = yield from self.peek()
            if char in kind.closers:
                open_.append(kind.closers[char])
            elif not char or (char not in kind.quotes and open_.pop() != char):
                return False
            if len(open_) > MAX_DEPTH and not stream:
                return False
            self._at += 1
            if char in kind.quotes and not (yield from self._string_rest(char, stream=stream)):
                return False
            if not open_:
                return True

    def _string_rest(self, quote: str, *, stream: bool = False) -> Reading[bool]:
        """Reads the rest of a string, its closing quote included. False when the text ends in it."""
        while True:
            yield from self._run(_IN_STRING[quote], stream=stream)
            char = yield from self.peek()
            if not char:
                return False
            self._at += 1
            if char == quote:
                return True
            if (yield from self.peek()):  # what a backslash escapes
                self._at += 1

    def _run(self, pattern: re.Pattern[str], *, stream: bool = False) -> Reading[str]:
        """Reads as much as `pattern`, which repeats one class of characters, matches; may give it as arguments."""
        start = self._at
        while True:
            found = pattern.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or self._is_complete:
                return self._text[start : self._at]
            if stream and self._at:
                yield Arguments(self.take())
                start = 0
            yield None


@functools.cache
def _searcher(marks: tuple[str, ...]) -> tuple[Callable[[str], re.Match[str] | None], frozenset[str]]:
    """Finds the first of the marks, the longest where several begin; and the texts that may become one."""
    pattern = re.compile("|".join(map(re.escape, marks)) if marks else r"(?!)")
    return pattern.search, frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))


def _held(text: str, prefixes: frozenset[str]) -> int:
    """How many characters at the end may be the start of a mark."""
    longest = min(len(text), max(map(len, prefixes), default=0))
    return next((length for length in range(longest, 0, -1) if text[-length:] in prefixes), 0)
