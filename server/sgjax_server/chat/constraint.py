"""One grammar for a turn: the calls that it must or may hold, its response format, and the reasoning before them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from sgjax.types import RequestError, SamplingParams
from sgjax_server.chat.parsers.reasoning import CLOSE, OPEN
from sgjax_server.chat.thinking import Thinking
from sgjax_server.chat.tool_formats import ToolFormat
from sgjax_server.chat.tools import Tool, ToolChoice

Format = dict[str, Any]

_SCHEMA_PATH = re.compile(r"#/format\S*?/(?:tags/(\d+)/content/)?json_schema(?=[/:])")


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a turn's output must follow.

    Attributes:
      sampling: the turn's, with the grammar. thinking: what the grammar leaves of it.
      tools: those that may be called. is_made: the grammar is not the request's own.
    """

    sampling: SamplingParams
    thinking: Thinking
    tools: Sequence[Tool] = ()
    is_made: bool = False

    def explain(self, error: RequestError) -> RequestError:
        """An engine's refusal of the grammar, in terms of the request that it was made from."""
        if error.field != "structural_tag" or not self.is_made:
            return error
        found = _SCHEMA_PATH.search(error.message)
        if found is None:
            return RequestError(_maker(self.tools), error.message)
        message = f"#{error.message[found.end() :]}"
        if found[1] is None:
            return RequestError("json_schema", message)
        return RequestError("tools", f"the parameters of {self.tools[int(found[1])].name!r}: {message}")


def constrain(
    sampling: SamplingParams,
    thinking: Thinking,
    tools: Sequence[Tool] = (),
    choice: ToolChoice | None = None,
    tool_format: ToolFormat | None = None,
    *,
    parallel: bool = True,
) -> Constraint:
    """Puts what a turn asks for into its sampling parameters.

    Args:
      choice, tool_format: given where calls are possible.

    Raises:
      RequestError: wishes that exclude each other, by the name of one of them.
    """
    if choice is not None and choice.mode == "named":
        tools = [tool for tool in tools if tool.name == choice.name]
        parallel = False
    given = sampling.grammar
    if choice is None or tool_format is None:
        content = _response(sampling) if thinking != "none" else None
    elif choice.mode != "auto":
        if given is not None:
            raise RequestError(given.kind, f"cannot be combined with the tool_choice {choice.mode!r}")
        content = _calls(tools, tool_format, "tool_choice", parallel=parallel)
    elif given is not None:
        response = _response(sampling)
        if response is None:
            raise RequestError(given.kind, "cannot be combined with tools")
        content = {"type": "or", "elements": [_calls(tools, tool_format, "tools", parallel=parallel), response]}
    else:
        content = _text_with_calls(tools, tool_format, parallel=parallel)
    if content is None:
        # A grammar of another kind holds from the first token on, so that there is no reasoning.
        return Constraint(sampling, "none" if given is not None else thinking, tools)
    tag = json.dumps({"type": "structural_tag", "format": _after_thoughts(content, thinking)})
    try:
        sampling = dataclasses.replace(sampling, json_schema=None, structural_tag=tag)
    except RequestError as error:
        maker = _maker(tools)
        field = maker if error.field == "structural_tag" else error.field
        raise RequestError(field, error.message.replace("structural_tag", maker)) from None
    return Constraint(sampling, thinking, tools, is_made=True)


def _maker(tools: Sequence[Tool]) -> str:
    """The request's field that a made grammar comes from."""
    return "tools" if tools else "json_schema"


def _response(sampling: SamplingParams) -> Format | None:
    if sampling.json_schema is None:
        return None
    try:
        schema = json.loads(sampling.json_schema)
    except ValueError:  # the engine says what is wrong with it
        return None
    return {"type": "json_schema", "json_schema": schema}


def _calls(tools: Sequence[Tool], written: ToolFormat, field: str, *, parallel: bool) -> Format:
    """Calls and nothing else."""
    _check_grammar(written, field)
    calls = {
        "type": "tags_with_separator",
        "tags": [_tag(tool.schema, written.begin_of(tool.name), written.end) for tool in tools],
        "separator": written.separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }
    if not written.opening:
        return calls
    ends = ({"type": "const_string", "value": text} for text in (written.opening, written.closing))
    first, last = ends
    return {"type": "sequence", "elements": [first, calls, last]}


def _text_with_calls(tools: Sequence[Tool], written: ToolFormat, *, parallel: bool) -> Format | None:
    """Text in which calls are free to come; None where nothing is asked of them."""
    if parallel and not any(tool.strict for tool in tools):
        return None
    _check_grammar(written, "tools" if parallel else "parallel_tool_calls")
    any_object = {"type": "object"}
    tags = [
        _tag(
            tool.schema if tool.strict else any_object,
            written.opening + written.begin_of(tool.name),
            written.end + written.closing,
        )
        for tool in tools
    ]
    return {
        "type": "triggered_tags",
        "triggers": list(written.triggers),
        "tags": tags,
        "stop_after_first": not parallel,
    }


def _check_grammar(written: ToolFormat, field: str) -> None:
    if written.begin is None:
        raise RequestError(field, "no grammar can be made for this model's calls, which are not JSON")


def _tag(schema: Any, begin: str, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": end}


def _after_thoughts(content: Format, thinking: Thinking) -> Format:
    if thinking == "none":
        return content
    begin = "" if thinking == "open" else OPEN
    thoughts = {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": CLOSE}
    thought_first = {"type": "sequence", "elements": [thoughts, {"type": "const_string", "value": "\n\n"}, content]}
    return thought_first if thinking == "open" else {"type": "or", "elements": [thought_first, content]}
