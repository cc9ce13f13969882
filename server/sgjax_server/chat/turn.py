"""One generated turn: a conversation goes in, text, reasoning and tool calls come out, whatever the API."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import Receive

from sgjax.types import GenerateOutput, OutputDelta, Request, RequestError, SamplingParams
from sgjax_server.calls import Call, encode_chat, finished, started, within_context
from sgjax_server.chat.constraint import Constraint, constrain
from sgjax_server.chat.events import ChatAnswer as ChatAnswer
from sgjax_server.chat.events import ChatEvent as ChatEvent
from sgjax_server.chat.events import Ended as Ended
from sgjax_server.chat.events import ReasoningDelta as ReasoningDelta
from sgjax_server.chat.events import TextDelta as TextDelta
from sgjax_server.chat.events import ToolArguments as ToolArguments
from sgjax_server.chat.events import ToolCall as ToolCall
from sgjax_server.chat.events import ToolCallStarted as ToolCallStarted
from sgjax_server.chat.model_format import ModelFormat
from sgjax_server.chat.parsers.hide import hide
from sgjax_server.chat.parsers.parser import Format
from sgjax_server.chat.parsers.reasoning import reasoning
from sgjax_server.chat.reader import SampleReader
from sgjax_server.chat.thinking import count_reasoning, thinking
from sgjax_server.chat.tool_formats import ToolFormat
from sgjax_server.chat.tools import AUTO, describe_tools
from sgjax_server.chat.tools import Tool as Tool
from sgjax_server.chat.tools import ToolChoice as ToolChoice
from sgjax_server.delivery import Deltas

if TYPE_CHECKING:
    from sgjax_server.routes.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTurn:
    """What to generate.

    Attributes:
      messages: in the form of OpenAI's chat API, which templates read; assistant `tool_calls` and role "tool" included.
      parallel_tool_calls: whether a turn may hold more than one call.
      template_options: of the chat template: `chat_template_kwargs`, `continue_final_message`, `add_generation_prompt`.
      separate_reasoning: give what the model thinks as reasoning; otherwise it stays in the text, markers included.
      stream_reasoning: give it while it comes, instead of in one piece when it is over.
      clip_to_context: end where the context ends if `sampling` allows for more tokens, which is refused otherwise.
    """

    rid: str
    messages: Sequence[Mapping[str, Any]]
    sampling: SamplingParams
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    clip_to_context: bool = False
    return_logprob: bool = False
    top_logprobs_num: int = 0
    priority: int = 0
    extra_key: str = ""

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """Those that the model is told of."""
        return () if self.tool_choice.mode == "none" else self.tools


async def encode_turn(turn: ChatTurn, context: Context) -> list[int]:
    """The prompt's token ids. Raises RequestError: the chat template refuses the messages."""
    model = context.model_format
    tools = turn.offered_tools
    options = dict(turn.template_options)
    messages = turn.messages
    if model.describes_tools and model.tools is not None:
        messages = describe_tools(messages, tools, model.tools.call)
    elif tools:
        options["tools"] = [tool.for_template() for tool in tools]
    return await encode_chat(context.engine, messages, **options)


async def start_turn(turn: ChatTurn, context: Context) -> ChatCall:
    """Submits a turn and waits until the engine has queued it. Whoever gets the call must close it.

    Raises:
      RequestError: the turn is refused; `field` is the engine's or the turn's name for what is at fault.
      QueueFull: the engine takes no more. ClientGone: the client closed the connection.
    """
    turn.tool_choice.check(turn.tools)
    model = context.model_format
    tools = turn.offered_tools
    written = model.tool_format() if tools else None
    input_ids = await encode_turn(turn, context)
    thinks = thinking(
        model.reasoning,
        context.engine.tokenizer,
        input_ids,
        turn.messages,
        continues=bool(turn.template_options.get("continue_final_message")),
    )
    choice = turn.tool_choice if tools else None
    sampling = turn.sampling
    if turn.clip_to_context:
        sampling = within_context(sampling, len(input_ids), context.engine.info.context_length)
    constraint = constrain(sampling, thinks, tools, choice, written, parallel=turn.parallel_tool_calls)
    sampling, formats = _reading(turn, constraint, written, model)
    request = Request(
        rid=turn.rid,
        input_ids=tuple(input_ids),
        sampling=sampling,
        return_logprob=turn.return_logprob,
        top_logprobs_num=turn.top_logprobs_num,
        priority=turn.priority,
        extra_key=turn.extra_key,
    )
    call = Call(context, [request])
    try:
        await started(call, context.receive)
    except RequestError as error:
        raise constraint.explain(error) from None
    new_id = written.new_id if written is not None else str
    expected = constraint.thinking
    count = functools.partial(count_reasoning, expected, context.engine.tokenizer) if expected != "none" else None
    reader = functools.partial(
        SampleReader,
        formats=formats,
        new_id=new_id,
        stream_reasoning=turn.stream_reasoning,
        count_reasoning=count,
    )
    return ChatCall(call, input_ids, reader)


def _reading(
    turn: ChatTurn, constraint: Constraint, written: ToolFormat | None, model: ModelFormat
) -> tuple[SamplingParams, list[Format]]:
    """How to read the output, and the sampling parameters that make it readable."""
    formats: list[Format] = []
    if turn.separate_reasoning and constraint.thinking != "none":
        formats.append(functools.partial(reasoning, is_open=constraint.thinking == "open"))
    if written is not None:
        formats.append(functools.partial(written.parse, tools=frozenset(tool.name for tool in turn.tools)))
    sampling = constraint.sampling
    if formats and model.hidden and sampling.skip_special_tokens:
        sampling = dataclasses.replace(sampling, skip_special_tokens=False)
        formats.insert(0, functools.partial(hide, marks=model.hidden))
    return sampling, formats


class ChatCall:
    """A turn that is being generated. Take either its `events` or its `answers`.

    Attributes:
      input_ids: the prompt.
    """

    def __init__(self, call: Call, input_ids: list[int], reader: Callable[[int], SampleReader]):
        self.input_ids = input_ids
        self._call = call
        self._reader = reader

    async def deliver(self, take: Callable[[list[ChatEvent]], asyncio.Future[Any] | None], interval: int) -> None:
        """Hands what becomes visible to `take`, as `Call.deliver` does."""
        readers = [self._reader(index) for index in range(self._call.requests[0].sampling.n)]

        def read(deltas: Deltas) -> asyncio.Future[Any] | None:
            events = [event for _, delta in deltas for event in readers[delta.index].feed(delta)]
            return take(events) if events else None

        await self._call.deliver(read, interval)

    async def answers(self, receive: Receive) -> list[ChatAnswer]:
        """The whole samples; the call is closed then.

        Raises:
          ClientGone: the client closed the connection.
        """
        (outputs,) = await finished(self._call, receive)
        return [self._answer(output) for output in outputs]

    def _answer(self, output: GenerateOutput) -> ChatAnswer:
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
        for event in self._reader(output.index).feed(whole):
            answer.add(event)
        return answer

    def close(self) -> None:
        """Aborts what has not finished."""
        self._call.close()
