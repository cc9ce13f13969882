"""What a traced program says before it first asks a model: cached ahead of a batch, and the batch's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sgjax.errors import RequestError
from sgjax.lang import ir
from sgjax.lang.chat_format import ChatFormat
from sgjax.lang.transcript import Prompt, Transcript


def leading_items(program: ir.Program, arguments: Mapping[str, Any]) -> Iterator[ir.Expr]:
    """Texts and turn borders up to the first thing that is not known: a generation, a fork, a missing argument."""
    for op in program.ops:
        if not isinstance(op, ir.Append) or op.state != 0:
            return
        for item in ir.items_of(op.expr):
            match item:
                case ir.Argument(name) if name in arguments:
                    yield ir.Text(str(arguments[name]))
                case ir.Text() | ir.RoleBegin() | ir.RoleEnd():
                    yield item
                case ir.ScopeBegin() | ir.ScopeEnd():
                    continue
                case _:
                    return


def is_cut_short(program: ir.Program) -> bool:
    """Whether the trace was stopped before the program first asked a model: runs have more in common than it tells."""
    end = ir.Text("")
    longer = dataclasses.replace(program, ops=(*program.ops, ir.Append(0, end)))
    known = dict.fromkeys(program.parameters, "")
    return program.incomplete is not None and any(item is end for item in leading_items(longer, known))


def constant_prefix(program: ir.Program, format: ChatFormat) -> Prompt | None:
    """The prompt that every run of the program begins with; None when it is empty."""
    transcript = Transcript(format)
    try:
        for item in leading_items(program, {}):
            match item:
                case ir.Text(text):
                    transcript.append(text)
                case ir.RoleBegin(role):
                    transcript.begin(role)
                case ir.RoleEnd(role):
                    transcript.end(role)
        prompt = transcript.prompt()
    except (RequestError, ValueError):
        return None  # the runs will say what is wrong with it
    return prompt if prompt.text else None


def sort_key(program: ir.Program, arguments: Mapping[str, Any]) -> str:
    """Equal beginnings of programs are equal beginnings of this."""
    items = leading_items(program, arguments)
    return "".join(item.text if isinstance(item, ir.Text) else f"\x00{item!r}\x00" for item in items)
