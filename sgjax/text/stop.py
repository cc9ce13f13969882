"""Stop strings and regular expressions in streamed text."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from re import _constants, _parser  # type: ignore[attr-defined]  # public until 3.11, as sre_parse
from typing import Any

import regex

from sgjax.types import RequestError

# The longest text held back because a regular expression may still match it, and how much of the text before that
# lookbehind and word boundaries can see.
REGEX_HELD_CHARS = 256
REGEX_CONTEXT_CHARS = 256
# A search of so little text takes microseconds; one that takes this long backtracks without end.
REGEX_TIMEOUT_S = 0.1
# `regex` writes counted repeats out, nested ones multiplied: a line of text can take gigabytes, or crash it.
MAX_REGEX_SIZE = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop found in the text fed so far.

    Attributes:
      stop: the stop string, or what the regular expression matched.
      start, end: its place, in characters before the end of the text.
    """

    stop: str
    start: int
    end: int


class StopMatcher:
    """Finds the first stop in text that arrives in pieces, and says how much text may be the start of one.

    Stop strings are followed character by character: how the text is cut into pieces changes nothing, and of several
    the one that ends first wins. Regular expressions are searched after every piece, as SGLang does after every token,
    so that `$` and lookahead see only the text so far; a match may span `REGEX_HELD_CHARS` characters before the piece.

    Args:
      regexes: patterns; the `regex` package reads them, since `re` has no partial matches.

    Attributes:
      held: characters at the end of the text that may be the start of a stop.
    """

    def __init__(self, strings: Sequence[str], regexes: Sequence[str]):
        self._strings = [_StringState(string) for string in strings]
        self._regexes = _RegexState(regexes) if regexes else None
        self.held = 0

    def feed(self, piece: str) -> StopMatch | None:
        """Takes the next text; returns the first stop in it. Not to be called again after a match."""
        matches = [match for state in self._strings if (match := state.feed(piece)) is not None]
        held = [state.num_matched for state in self._strings]
        if self._regexes is not None:
            if (match := self._regexes.feed(piece)) is not None:
                matches.append(match)
            held.append(self._regexes.held)
        self.held = max(held, default=0)
        return max(matches, key=lambda match: (match.end, match.start), default=None)


class _StringState:
    """Knuth-Morris-Pratt: `num_matched` characters of `string` are the end of the text fed so far."""

    def __init__(self, string: str):
        self.string = string
        self.num_matched = 0
        # fallback[n]: the longest proper prefix of string[:n] that is also its suffix
        self._fallback = [0, 0]
        for n in range(1, len(string)):
            self._fallback.append(self._advance(self._fallback[n], string[n]))

    def _advance(self, num_matched: int, char: str) -> int:
        while num_matched and self.string[num_matched] != char:
            num_matched = self._fallback[num_matched]
        return num_matched + (self.string[num_matched] == char)

    def feed(self, piece: str) -> StopMatch | None:
        state = self.num_matched
        for i, char in enumerate(piece, 1):
            state = self._advance(state, char)
            if state == len(self.string):
                end = len(piece) - i
                return StopMatch(self.string, end + len(self.string), end)
        self.num_matched = state
        return None


class _RegexState:
    """Searches a bounded window at the end of the text."""

    def __init__(self, patterns: Sequence[str]):
        self._patterns = [_compiled(pattern) for pattern in patterns]
        self._window = ""
        self.held = 0

    def feed(self, piece: str) -> StopMatch | None:
        # Trimmed or not, `^` matches at index 0 alone, which is searched only while it is the text's true start.
        self._window = self._window[-(REGEX_CONTEXT_CHARS + REGEX_HELD_CHARS) :] + piece
        length = len(self._window)
        first = length - len(piece) - self.held
        try:
            found = [m for p in self._patterns if (m := p.search(self._window, first, timeout=REGEX_TIMEOUT_S))]
            if found:
                match = min(found, key=lambda m: (m.end(), m.start()))
                return StopMatch(match.group(), length - match.start(), length - match.end())
            partial = [p.search(self._window, first, partial=True, timeout=REGEX_TIMEOUT_S) for p in self._patterns]
        except TimeoutError:
            raise RequestError("stop_regex", "takes too long to match the text") from None
        self.held = min(max((length - m.start() for m in partial if m), default=0), REGEX_HELD_CHARS)
        return None


@functools.lru_cache(maxsize=256)  # every sample of a request has the same
def _compiled(pattern: str) -> regex.Pattern[str]:
    """Raises RequestError: it is no regular expression, is too large, or stops before there is any text."""
    try:
        if _size(_parser.parse(pattern)) > MAX_REGEX_SIZE:
            raise RequestError("stop_regex", f"{pattern!r} repeats too much: more than {MAX_REGEX_SIZE} times")
        compiled = regex.compile(pattern, cache_pattern=False)
        stops_at_once = compiled.search("", timeout=REGEX_TIMEOUT_S)
    except (regex.error, re.error) as error:
        raise RequestError("stop_regex", f"{pattern!r} is not a regular expression: {error}") from None
    except TimeoutError:
        raise RequestError("stop_regex", f"{pattern!r} takes too long to match") from None
    if stops_at_once:
        raise RequestError("stop_regex", f"{pattern!r} matches the empty text, and would stop at once")
    return compiled


def _size(parsed: Any) -> int:
    """How many characters and sets a pattern, as the standard library parses it, has with its repeats written out."""
    match parsed:
        case (_constants.MAX_REPEAT | _constants.MIN_REPEAT | _constants.POSSESSIVE_REPEAT, (low, high, repeated)):
            times = low if high is _constants.MAXREPEAT else high
            return max(1, int(times)) * _size(repeated)
        case _parser.SubPattern() | list() | tuple():
            return sum(map(_size, parsed))
        case _constants._NamedIntConstant():  # what kind of thing follows
            return 0
        case _:
            return 1
