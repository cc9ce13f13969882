"""How the served model writes calls and reasoning: as its flags say, or as its chat template shows."""

from __future__ import annotations

import dataclasses

from sgjax.text import Tokenizer
from sgjax.types import RequestError
from sgjax_server.chat.parsers.reasoning import CLOSE, OPEN, ReasoningFormatName
from sgjax_server.chat.tool_formats import FORMATS, ToolFormat, adapted, guess
from sgjax_server.config import ServerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """What is known of a model's output.

    Attributes:
      tools: how it writes calls; None when it is not known or switched off, and then `no_tools` says why.
      describes_tools: the chat template ignores tools, so that the prompt must describe them.
      reasoning: how it writes reasoning; None when it does not.
      hidden: texts of special tokens, which are no part of an answer; without those that mark calls and reasoning.
        Empty where these are recognised without special tokens.
    """

    tools: ToolFormat | None
    no_tools: str = ""
    describes_tools: bool = False
    reasoning: ReasoningFormatName | None = None
    hidden: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ServerConfig) -> ModelFormat:
        """The format of a model behind its tokenizer."""
        template = "\n".join(tokenizer.chat_templates.values())
        try:
            describes = not tokenizer.template_reads("tools")
        except ValueError:  # rendering will say it
            describes = False
        tools, no_tools = _tool_format(config, template, describes)
        return cls(
            tools=tools,
            no_tools=no_tools,
            describes_tools=describes,
            reasoning=(reasoning := _reasoning(config, template)),
            hidden=_hidden(tokenizer, tools, reasoning),
        )

    def tool_format(self) -> ToolFormat:
        """How calls are written. Raises RequestError when there is no way."""
        if self.tools is None:
            raise RequestError("tools", self.no_tools)
        return self.tools


def _tool_format(config: ServerConfig, template: str, describes: bool) -> tuple[ToolFormat | None, str]:
    name = config.tool_call_parser
    if name == "none":
        return None, "not supported: the server was started with --tool-call-parser none"
    if name != "auto":
        return adapted(FORMATS[name], template), ""
    if describes:  # any form will do, and this is the one that most models have seen
        return FORMATS["hermes"], ""
    found = guess(template)
    if found is None:
        return None, "how this model writes calls is not known; start the server with --tool-call-parser"
    return adapted(found, template), ""


def _reasoning(config: ServerConfig, template: str) -> ReasoningFormatName | None:
    match config.reasoning_parser:
        case "none":
            return None
        case "auto":
            # Right for all who write the opening mark, or whose template does.
            return "qwen3" if "</think>" in template else None
        case name:
            return name


def _hidden(tokenizer: Tokenizer, tools: ToolFormat | None, reasoning: ReasoningFormatName | None) -> tuple[str, ...]:
    special = tokenizer.special_token_ids
    marks = (*(tools.marks if tools else ()), *((OPEN, CLOSE) if reasoning else ()))
    if not any(tokenizer.token_to_id(mark) in special for mark in marks):
        return ()
    texts = {tokenizer.decode([token_id], skip_special_tokens=False) for token_id in special}
    return tuple(sorted(texts.difference(marks, [""]), key=len, reverse=True))
