"""From one sample's text to events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sgjax.types import OutputDelta, TokenLogprobs
from sgjax_server.chat.events import ChatEvent, Ended, ReasoningDelta, TextDelta, ToolArguments, ToolCallStarted
from sgjax_server.chat.parsers.parser import AnswerParser, Format
from sgjax_server.chat.parsers.pieces import Arguments, CallStarted, Piece, Reasoning, Text


class SampleReader:
    """Reads one sample's deltas.

    Args:
      formats: what its text may hold, outermost first; without any it is all text.
      new_id: an id for a call of a tool.
      stream_reasoning: give reasoning while it comes, instead of in one piece when it is over.
      count_reasoning: how many of an output's tokens are reasoning; None where none can be.
    """

    def __init__(
        self,
        index: int,
        formats: Sequence[Format],
        new_id: Callable[[], str],
        *,
        stream_reasoning: bool = True,
        count_reasoning: Callable[[Sequence[int]], int] | None = None,
    ):
        self._index = index
        self._parser = AnswerParser(formats) if formats else None
        self._new_id = new_id
        self._holds_reasoning = not stream_reasoning
        self._reasoning = ""
        self._num_calls = 0
        self._logprobs: list[TokenLogprobs] | None = None
        self._count_reasoning = count_reasoning
        self._token_ids: list[int] = []  # for the count alone

    def feed(self, delta: OutputDelta) -> Iterator[ChatEvent]:
        """The events that a delta brings."""
        if delta.logprobs is not None:
            self._logprobs = [*(self._logprobs or []), *delta.logprobs]
        if self._count_reasoning is not None:
            self._token_ids += delta.token_ids
        for piece in self._pieces(delta):
            if isinstance(piece, Reasoning) and self._holds_reasoning:
                self._reasoning += piece.text
                continue
            yield from self._held_reasoning()
            yield self._event(piece)
        if delta.finish is not None:
            yield from self._held_reasoning()
            count = 0 if self._count_reasoning is None else self._count_reasoning(self._token_ids)
            yield Ended(self._index, delta.finish, self._num_calls, delta.receipt, self._take_logprobs(), count)

    def _pieces(self, delta: OutputDelta) -> list[Piece]:
        if self._parser is None:
            return [Text(delta.text)] if delta.text else []
        pieces = self._parser.feed(delta.text) if delta.text else []
        return pieces if delta.finish is None else [*pieces, *self._parser.finish()]

    def _event(self, piece: Piece) -> ChatEvent:
        match piece:
            case Text(text):
                return TextDelta(self._index, text, self._take_logprobs())
            case Reasoning(text):
                return ReasoningDelta(self._index, text, self._take_logprobs())
            case CallStarted(name):
                self._num_calls += 1
                return ToolCallStarted(self._index, self._num_calls - 1, self._new_id(), name)
            case Arguments(text):
                return ToolArguments(self._index, self._num_calls - 1, text)

    def _held_reasoning(self) -> Iterator[ChatEvent]:
        if self._reasoning:
            yield ReasoningDelta(self._index, self._reasoning, self._take_logprobs())
            self._reasoning = ""

    def _take_logprobs(self) -> list[TokenLogprobs] | None:
        """Those of the tokens since the last event that had any."""
        taken, self._logprobs = self._logprobs, None
        return taken
