"""Tool calls and reasoning of a text that was generated before, as SGLang's clients ask for them."""

from __future__ import annotations

import functools

from fastapi import APIRouter

from sgjax.types import RequestError
from sgjax_server.chat.parsers.parser import AnswerParser, Format
from sgjax_server.chat.parsers.pieces import Arguments, CallStarted, Piece, Reasoning, Text
from sgjax_server.chat.parsers.reasoning import reasoning
from sgjax_server.chat.tool_formats import FORMATS
from sgjax_server.routes.context import ContextDep
from sgjax_server.schemas.answers.native import ReadCall, ReadCalls, ReadReasoning
from sgjax_server.schemas.parse import ParseFunctionCallRequest, SeparateReasoningRequest

router = APIRouter(tags=["native"])


@router.post("/parse_function_call")
async def parse_function_call(body: ParseFunctionCallRequest, context: ContextDep) -> ReadCalls:
    """The calls of tools in a text that a model wrote before, and the text around them."""
    names = frozenset(tool.tool().name for tool in body.tools)
    name = body.tool_call_parser
    written = context.model_format.tool_format() if name is None else FORMATS[name]
    calls: list[ReadCall] = []
    text = ""
    for piece in _pieces(functools.partial(written.parse, tools=names), body.text):
        match piece:
            case CallStarted(name):
                calls.append({"tool_index": len(calls), "name": name, "parameters": ""})
            case Arguments(arguments):
                calls[-1]["parameters"] += arguments
            case Text(more):
                text += more
    return {"normal_text": text, "calls": calls}


@router.post("/separate_reasoning")
async def separate_reasoning(body: SeparateReasoningRequest, context: ContextDep) -> ReadReasoning:
    """The reasoning in a text that a model wrote before, and the rest of it."""
    parser = body.reasoning_parser or context.model_format.reasoning
    if parser is None:
        raise RequestError("reasoning_parser", "is missing, and this server has none")
    pieces = _pieces(functools.partial(reasoning, is_open=parser == "deepseek-r1"), body.text)
    thoughts = (piece.text for piece in pieces if isinstance(piece, Reasoning))
    texts = (piece.text for piece in pieces if isinstance(piece, Text))
    return {"reasoning_text": "".join(thoughts), "text": "".join(texts)}


def _pieces(format: Format, text: str) -> list[Piece]:
    parser = AnswerParser([format])
    return parser.feed(text) + parser.finish()
