"""Incremental detokenisation: tokens in, text that is safe to show out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from sgjax.text.stop import StopMatcher
from sgjax.text.tokenizer import Tokenizer
from sgjax.types import SamplingParams

_UTF8 = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """The text of one growing output, in pieces that never have to be taken back.

    Held back are the bytes of an unfinished character and any text that may be the start of a stop. The pieces
    joined are the decoding of all tokens as the continuation of a prompt (where a sentencepiece tokenizer keeps the
    space before the first word), up to the stop. Tokens are decoded one by one, as bytes: work per token is constant.

    Attributes:
      matched: the stop string found, or what a stop_regex matched; None before. Text is cut before it, or with
        `no_stop_trim` after it.
      num_tokens: tokens taken; after a match, up to and including the one that completed it.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams):
        self.matched: str | None = None
        self.num_tokens = 0
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_token_ids if sampling.skip_special_tokens else frozenset[int]()
        self._utf8 = _UTF8("replace")
        stops, regexes = tuple(sampling.stop or ()), tuple(sampling.stop_regex or ())
        self._matcher = StopMatcher(stops, regexes) if stops or regexes else None
        self._keep_stop = sampling.no_stop_trim
        self._tail = ""  # decoded, not yet shown
        # A special token that is itself a stop string stops even where its text is hidden.
        wanted = {tokenizer.token_to_id(stop): stop for stop in stops}
        self._hidden_stops = {i: stop for i, stop in wanted.items() if i in self._skipped}

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes tokens; returns the text that became safe to show. After a match, tokens are ignored.

        Raises:
          RequestError: a stop_regex takes too long.
        """
        shown = []
        for token_id in token_ids:
            if self.matched is not None:
                break
            self.num_tokens += 1
            if token_id in self._hidden_stops:
                shown.append(self.finish())
                self.matched = self.matched or self._hidden_stops[token_id]
            elif token_id not in self._skipped:
                shown.append(self._show(self._utf8.decode(self._token_bytes(token_id))))
        return "".join(shown)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come. An unfinished character shows as U+FFFD."""
        if self.matched is not None:
            return ""
        text = self._show(self._utf8.decode(b"", final=True))
        rest, self._tail = self._tail, ""
        return text + rest

    def _show(self, piece: str) -> str:
        if self._matcher is None or not piece:
            return piece
        text = self._tail + piece
        match = self._matcher.feed(piece)
        if match is not None:
            self.matched = match.stop
            self._tail = ""
            return text[: len(text) - (match.end if self._keep_stop else match.start)]
        safe = len(text) - self._matcher.held
        self._tail = text[safe:]
        return text[:safe]
