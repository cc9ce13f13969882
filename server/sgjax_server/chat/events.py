"""What a generated turn consists of: events while it comes, or the whole answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from sgjax.types import FinishReason, Receipt, TokenLogprobs

Logprobs = Sequence[TokenLogprobs]


@dataclasses.dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of sample `index`'s text, never empty, with the log-probabilities of the tokens since the last piece."""

    index: int
    text: str
    logprobs: Logprobs | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers, never empty."""

    index: int
    text: str
    logprobs: Logprobs | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """Call `number` (0, 1, ... within the sample) of the tool `name` begins; `id` is new and unique."""

    index: int
    number: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ToolArguments:
    """A piece of call `number`'s arguments; joined they are the JSON text that the model wrote."""

    index: int
    number: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """The sample is complete. `logprobs` are those of tokens after the last piece of text, such as end-of-sequence.

    `num_reasoning_tokens` are those of its tokens that the model thought with, the marks around included.
    """

    index: int
    finish: FinishReason
    num_tool_calls: int = 0
    receipt: Receipt | None = None
    logprobs: Logprobs | None = None
    num_reasoning_tokens: int = 0


ChatEvent = TextDelta | ReasoningDelta | ToolCallStarted | ToolArguments | Ended


@dataclasses.dataclass(slots=True)
class ToolCall:
    """A call of a tool. `arguments` is JSON text as the model wrote it, which only a grammar makes sure to be valid."""

    id: str
    name: str
    arguments: str = ""

    def arguments_object(self) -> dict[str, Any]:
        """The arguments read, for APIs that have no text of them.

        What is no JSON object, as when the answer was cut, is the value of "INVALID_JSON": no tool must mistake a part
        for the whole.
        """
        try:
            value = from_json(self.arguments, allow_inf_nan=False)
        except ValueError:
            value = None
        return value if isinstance(value, dict) else {"INVALID_JSON": self.arguments}


@dataclasses.dataclass(slots=True)
class ChatAnswer:
    """One whole sample: the sum of its events."""

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = dataclasses.field(default_factory=list)
    finish: FinishReason | None = None
    receipt: Receipt | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_reasoning_tokens: int = 0

    def add(self, event: ChatEvent) -> None:
        """Appends an event of this sample."""
        match event:
            case TextDelta(text=text):
                self.text += text
            case ReasoningDelta(text=text):
                self.reasoning += text
            case ToolCallStarted(id=id, name=name):
                self.tool_calls.append(ToolCall(id, name))
            case ToolArguments(number=number, text=text):
                self.tool_calls[number].arguments += text
            case Ended(finish=finish, receipt=receipt, num_reasoning_tokens=num_reasoning_tokens):
                self.finish, self.receipt, self.num_reasoning_tokens = finish, receipt, num_reasoning_tokens
        if not isinstance(event, ToolCallStarted | ToolArguments) and event.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *event.logprobs]
