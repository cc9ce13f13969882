"""One generated turn: a conversation goes in, text, reasoning and tool calls come out, whatever the API."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from starlette.types import Receive

from sgjax.types import OutputDelta, Request, RequestError, SamplingParams, TokenLogprobs
from sgjax_server.calls import Call, encode_chat, finished, started
from sgjax_server.chat.events import ChatAnswer as ChatAnswer
from sgjax_server.chat.events import ChatEvent as ChatEvent
from sgjax_server.chat.events import Ended as Ended
from sgjax_server.chat.events import ReasoningDelta as ReasoningDelta
from sgjax_server.chat.events import TextDelta as TextDelta
from sgjax_server.chat.events import ToolArguments as ToolArguments
from sgjax_server.chat.events import ToolCall as ToolCall
from sgjax_server.chat.events import ToolCallStarted as ToolCallStarted

if TYPE_CHECKING:
    from sgjax_server.routes.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments; None is any object.

    `strict`: calls follow the schema whatever the model, by a grammar.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclasses.dataclass(frozen=True)
class ToolChoice:
    """Whether the model calls tools: as it likes, never, at least once, or the one with this `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTurn:
    """What to generate.

    Attributes:
      messages: in the form of OpenAI's chat API, which templates read; assistant `tool_calls` and role "tool" included.
      parallel_tool_calls: whether a turn may hold more than one call.
      template_options: of the chat template: `chat_template_kwargs`, `continue_final_message`, `add_generation_prompt`.
      separate_reasoning: give what the model thinks as reasoning; otherwise it stays in the text, markers included.
    """

    rid: str
    messages: Sequence[Mapping[str, Any]]
    sampling: SamplingParams
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    separate_reasoning: bool = True
    return_logprob: bool = False
    top_logprobs_num: int = 0
    priority: int = 0
    extra_key: str = ""


async def start_turn(turn: ChatTurn, context: Context) -> ChatCall:
    """Submits a turn and waits until the engine has queued it. Whoever gets the call must close it.

    Raises:
      RequestError: the turn is refused; `field` is the engine's or the turn's name for what is at fault.
      QueueFull: the engine takes no more. ClientGone: the client closed the connection.
    """
    if turn.tools and turn.tool_choice.mode != "none":
        raise RequestError("tools", "not supported")
    input_ids = await encode_chat(context.engine, turn.messages, **turn.template_options)
    request = Request(
        rid=turn.rid,
        input_ids=tuple(input_ids),
        sampling=turn.sampling,
        return_logprob=turn.return_logprob,
        top_logprobs_num=turn.top_logprobs_num,
        priority=turn.priority,
        extra_key=turn.extra_key,
    )
    call = Call(context, [request])
    await started(call, context.receive)
    return ChatCall(call, input_ids)


class ChatCall:
    """A turn that is being generated. Take either its `events` or its `answers`.

    Attributes:
      input_ids: the prompt.
    """

    def __init__(self, call: Call, input_ids: list[int]):
        self.input_ids = input_ids
        self._call = call

    async def events(self, interval: int) -> AsyncIterator[ChatEvent]:
        """What becomes visible, in order of arrival, at most every `interval` tokens of a sample."""
        samples: dict[int, _Sample] = {}
        async for _, delta in self._call.deltas(interval):
            sample = samples.setdefault(delta.index, _Sample(delta.index))
            for event in sample.feed(delta):
                yield event

    async def answers(self, receive: Receive) -> list[ChatAnswer]:
        """The whole samples; the call is closed then.

        Raises:
          ClientGone: the client closed the connection.
        """
        (outputs,) = await finished(self._call, receive)
        answers = []
        for output in outputs:
            answer = ChatAnswer(output.index)
            whole = OutputDelta(
                output.rid,
                output.index,
                output.text,
                output.output_ids,
                output.output_logprobs,
                finish=output.finish,
                receipt=output.receipt,
            )
            for event in _Sample(output.index).feed(whole):
                answer.add(event)
            answers.append(answer)
        return answers

    def close(self) -> None:
        """Aborts what has not finished."""
        self._call.close()


class _Sample:
    """Reads one sample's deltas."""

    def __init__(self, index: int):
        self._index = index
        self._logprobs: list[TokenLogprobs] | None = None

    def feed(self, delta: OutputDelta) -> Iterator[ChatEvent]:
        if delta.logprobs is not None:
            self._logprobs = [*(self._logprobs or []), *delta.logprobs]
        if delta.text:
            yield TextDelta(self._index, delta.text, self._take_logprobs())
        if delta.finish is not None:
            yield Ended(self._index, delta.finish, 0, delta.receipt, self._take_logprobs())

    def _take_logprobs(self) -> list[TokenLogprobs] | None:
        """Those of the tokens since the last event."""
        taken, self._logprobs = self._logprobs, None
        return taken
