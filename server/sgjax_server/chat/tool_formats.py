"""How models write calls of tools: a parser for each format, and the text that makes a call, for grammars."""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Callable
from typing import Literal

from sgjax_server.chat.parsers import deepseek, hermes, llama3, mistral, pythonic
from sgjax_server.chat.parsers.parser import ToolParser

ToolFormatName = Literal["hermes", "qwen", "qwen25", "llama3", "mistral", "deepseekv3", "deepseekv31", "pythonic"]
"""SGLang's names; those of Qwen are Hermes' format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """A format of calls.

    Attributes:
      parse: reads it.
      marks: what it is recognised by, which may be special tokens.
      opening, closing: stand before the first call and after the last. separator: stands between calls.
      begin: what stands before a call's arguments, with NAME for the tool's name; None where they are not JSON, so
        that no grammar can be made. end: what stands behind them.
      triggers: what begins a call within text: `opening` and `begin` start with one of them.
      new_id: an id for a call.
    """

    parse: ToolParser
    marks: tuple[str, ...]
    opening: str = ""
    begin: str | None
    end: str = ""
    closing: str = ""
    separator: str = "\n"
    triggers: tuple[str, ...] = ()
    new_id: Callable[[], str] = lambda: f"call_{uuid.uuid4().hex[:24]}"

    def begin_of(self, name: str) -> str:
        """What stands before the arguments of a call of the tool `name`."""
        assert self.begin is not None
        return self.begin.replace("NAME", name)

    def call(self, name: str, arguments: str) -> str:
        """A call as the model writes it; `arguments` is a JSON object."""
        if self.begin is None:
            return pythonic.call_text(name, arguments)
        return f"{self.opening}{self.begin_of(name)}{arguments}{self.end}{self.closing}"


_HERMES = ToolFormat(
    parse=hermes.hermes,
    marks=(hermes.OPEN, hermes.CLOSE),
    begin=hermes.OPEN + '\n{"name": "NAME", "arguments": ',
    end="}\n" + hermes.CLOSE,
    triggers=(hermes.OPEN,),
)
_LLAMA3 = ToolFormat(
    parse=llama3.llama3,
    marks=(llama3.PYTHON_TAG,),
    begin='{"name": "NAME", "parameters": ',
    end="}",
    separator="; ",
    triggers=('{"name": "',),
)
_MISTRAL = ToolFormat(
    parse=mistral.mistral,
    marks=(mistral.OPEN, mistral.ARGS, mistral.CALL_ID),
    opening=mistral.OPEN + " [",
    begin='{"name": "NAME", "arguments": ',
    end="}",
    closing="]",
    separator=", ",
    triggers=(mistral.OPEN,),
    new_id=lambda: uuid.uuid4().hex[:9],  # Mistral's templates refuse any other length
)
_MISTRAL_NAMED = dataclasses.replace(
    _MISTRAL, opening="", begin=f"{mistral.OPEN}NAME{mistral.ARGS}", end="", closing="", separator=""
)
_DEEPSEEK_V31 = ToolFormat(
    parse=deepseek.deepseek,
    marks=(deepseek.CALLS_BEGIN, deepseek.CALLS_END, deepseek.CALL_BEGIN, deepseek.CALL_END, deepseek.SEPARATOR),
    opening=deepseek.CALLS_BEGIN,
    begin=f"{deepseek.CALL_BEGIN}NAME{deepseek.SEPARATOR}",
    end=deepseek.CALL_END,
    closing=deepseek.CALLS_END,
    separator="",
    triggers=(deepseek.CALLS_BEGIN,),
)
_DEEPSEEK_V3 = dataclasses.replace(
    _DEEPSEEK_V31,
    begin=f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}NAME\n{deepseek.FENCE}\n",
    end=f"\n{deepseek.FENCE_END}{deepseek.CALL_END}",
    separator="\n",
)
_PYTHONIC = ToolFormat(
    parse=pythonic.pythonic,
    marks=(pythonic.START, pythonic.END),
    begin=None,
)

FORMATS: dict[ToolFormatName, ToolFormat] = {
    "hermes": _HERMES,
    "qwen": _HERMES,
    "qwen25": _HERMES,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "deepseekv3": _DEEPSEEK_V3,
    "deepseekv31": _DEEPSEEK_V31,
    "pythonic": _PYTHONIC,
}


def adapted(format: ToolFormat, template: str) -> ToolFormat:
    """The format in the variant that a chat template shows."""
    return _MISTRAL_NAMED if format is _MISTRAL and mistral.ARGS in template else format


def guess(template: str) -> ToolFormat | None:
    """The format of a chat template's text; None when it shows none that is known."""
    if deepseek.CALL_BEGIN in template:
        return _DEEPSEEK_V3 if deepseek.FENCE in template else _DEEPSEEK_V31
    if mistral.OPEN in template:
        return _MISTRAL
    if hermes.OPEN in template:
        # Qwen3-Coder writes XML between the same marks.
        return None if "<function=" in template else _HERMES
    if llama3.PYTHON_TAG in template or re.search(r'"name": function name, ?"parameters"', template):
        return _LLAMA3
    if pythonic.START in template or "func_name1(" in template:
        return _PYTHONIC
    return None
