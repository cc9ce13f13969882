"""Calls as a Python list, which Llama 4 and others write: `[f(a=1), g(b="x")]`. It is parsed, never run."""

from __future__ import annotations

import ast
import functools
import json
import warnings
from collections.abc import Set

from sgjax_server.chat.parsers.pieces import Arguments, CallStarted
from sgjax_server.chat.parsers.source import PYTHON, Reading, Source

START, END = "<|python_start|>", "<|python_end|>"


def pythonic(source: Source, tools: Set[str]) -> Reading[None]:
    """Gives calls and the text around them. A call is given when it is whole: its arguments are then put into JSON."""
    call = functools.partial(_call, source, tools)
    while mark := (yield from source.until((START, "["))):
        yield from source.spaces()
        is_list = mark == "[" or (yield from source.literal("["))
        if is_list and (yield from source.items(call, ",")):
            yield from source.closing("]", END)
        else:
            yield from source.give_back(len(mark))


def call_text(name: str, arguments: str) -> str:
    """A list with one call; arguments that are no JSON object stay as they are."""
    try:
        read = json.loads(arguments)
    except ValueError:
        read = None
    if isinstance(read, dict):
        arguments = ", ".join(f"{key}={value!r}" for key, value in read.items())
    return f"[{name}({arguments})]"


def _call(source: Source, tools: Set[str]) -> Reading[bool]:
    name = yield from source.word()
    if name not in tools or (yield from source.peek()) != "(":
        return False
    start = len(source.read)
    if not (yield from source.brackets(PYTHON)):
        return False
    arguments = _as_json(source.read[start:])
    if arguments is None:
        return False
    source.take()
    yield CallStarted(name)
    yield Arguments(arguments)
    return True


def _as_json(arguments: str) -> str | None:
    """The keyword arguments of a call, in parentheses, as a JSON object; None where they are no plain values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that Python does not know
            call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            return None
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return None if None in values else text
