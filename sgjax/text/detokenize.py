"""Incremental detokenisation: tokens in, text that is safe to show out."""

from __future__ import annotations

from collections.abc import Iterable

from sgjax.text.stop import StopMatcher
from sgjax.text.tokenizer import Tokenizer
from sgjax.types import SamplingParams

_REPLACEMENT = "\ufffd"
_UTF8_MAX_BYTES = 4


class TextStream:
    """The text of one growing output, in pieces that never have to be taken back.

    Held back are the bytes of an unfinished character and any text that may be the start of a stop. The pieces
    joined are the decoding of all tokens as the continuation of a prompt (where a sentencepiece tokenizer keeps the
    space before the first word), up to the stop. Work per token is constant: only undecided tokens are decoded again.

    Attributes:
      matched: the stop string found, or what a stop_regex matched; None before. Text is cut before it, or with
        `no_stop_trim` after it.
      num_tokens: tokens taken; after a match, up to and including the one that completed it.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams):
        self.matched: str | None = None
        self.num_tokens = 0
        skipped = tokenizer.special_token_ids if sampling.skip_special_tokens else frozenset[int]()
        self._decoder = _Decoder(tokenizer, skipped)
        stops, regexes = tuple(sampling.stop or ()), tuple(sampling.stop_regex or ())
        self._matcher = StopMatcher(stops, regexes) if stops or regexes else None
        self._keep_stop = sampling.no_stop_trim
        self._tail = ""  # decoded, not yet shown
        # A special token that is itself a stop string stops even where its text is hidden.
        wanted = {tokenizer.token_to_id(stop): stop for stop in stops}
        self._hidden_stops = {i: stop for i, stop in wanted.items() if i in skipped}

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
            else:
                shown.append(self._show(self._decoder.push(token_id)))
        return "".join(shown)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come. An unfinished character shows as U+FFFD."""
        if self.matched is not None:
            return ""
        text = self._show(self._decoder.flush())
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


class _Decoder:
    """Decodes tokens as soon as they form whole characters.

    Undecided tokens are decoded after an anchor, an ordinary token of known text: decoders that drop the space at the
    start of a text, or join the bytes of neighbouring tokens, then treat each window as the middle of a text.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]):
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        self._anchor_len = len(tokenizer.decode(self._anchor, skip_special_tokens=False))
        self._undecided: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._skipped or token_id >= self._tokenizer.vocab_size:
            return ""
        self._undecided.append(token_id)
        text = self._decode(self._undecided)
        if text.endswith(_REPLACEMENT):
            return self._settle(text)
        self._undecided.clear()
        return text

    def flush(self) -> str:
        text = self._decode(self._undecided) if self._undecided else ""
        self._undecided.clear()
        return text

    def _settle(self, text: str) -> str:
        """Decides the older tokens of a long run of broken UTF-8, so that the run is not decoded over and over.

        Four tokens (at least as many bytes) stay, so every character that crosses the cut ends in what stays, and a
        cut through a character shows: both sides then have replacement characters that the whole has not.
        """
        count = len(self._undecided)
        if count < 2 * _UTF8_MAX_BYTES:
            return ""
        for cut in range(count - _UTF8_MAX_BYTES, count - 2 * _UTF8_MAX_BYTES, -1):
            head = self._decode(self._undecided[:cut])
            if head + self._decode(self._undecided[cut:]) == text:
                del self._undecided[:cut]
                return head
        return ""

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(self._anchor + token_ids, skip_special_tokens=False)[self._anchor_len :]
