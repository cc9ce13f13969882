"""Chat templates of checkpoints: which one renders, and what messages it is given. See `jinja_dialect` too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgjax.jinja_dialect import compile_template, variables
from sgjax.types import RequestError

# Put at the end of the final message to find where it ends in the rendered text; templates strip the space.
_END_MARK = "\x02end of the final message\x03 "

Message = Mapping[str, Any]


class ChatTemplate:
    """Compiled templates of one checkpoint: "default" and perhaps "tool_use".

    Args:
      sources: template text by name.
      special_tokens: `bos_token`, `eos_token` and others, visible to the template by these names.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]):
        self.sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, Callable[[Mapping[str, Any]], str]] = {}

    def reads(self, variable: str) -> bool:
        """Whether a template reads a variable, such as `tools`. Raises ValueError for one that is not Jinja."""
        return any(variable in variables(source) for source in self.sources.values())

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`, as text that already holds its special tokens.

        Args:
          tools: JSON schemas of functions the model may call.
          add_generation_prompt: end with the start of an assistant message.
          continue_final_message: end inside the last message, which the model then goes on writing.
          kwargs: further variables of the template, such as `enable_thinking`.

        Raises:
          RequestError: messages that are malformed or that the template refuses.
        """
        messages = [_normal_message(message, i) for i, message in enumerate(_checked_list(messages))]
        if continue_final_message:
            if add_generation_prompt:
                raise RequestError("continue_final_message", "contradicts add_generation_prompt")
            final = messages[-1]
            if not isinstance(final.get("content"), str):
                raise RequestError("continue_final_message", "the last message has no text to continue")
            final["content"] += _END_MARK
        variables = {
            **self._special_tokens,
            "documents": None,
            **kwargs,
            "messages": messages,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._template(tools=bool(tools))(variables)
        return _cut_at_mark(text) if continue_final_message else text

    def _template(self, *, tools: bool) -> Callable[[Mapping[str, Any]], str]:
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            raise RequestError("messages", f"the model has no default chat template, only {', '.join(self.sources)}")
        if name not in self._compiled:
            try:
                self._compiled[name] = compile_template(self.sources[name])
            except ValueError as error:
                raise RequestError("messages", str(error)) from error
        return self._compiled[name]


def _checked_list(messages: Any) -> Sequence[Message]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError("messages", "must be a list of messages")
    if not messages:
        raise RequestError("messages", "the list is empty")
    return messages


def _normal_message(message: Any, index: int) -> dict[str, Any]:
    """A copy with the content as one string (or None) and tool-call arguments as objects, which templates expect."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError("messages", f"message {index} must be an object with a role")
    result = dict(message)
    if "content" in result:
        result["content"] = _flat_content(result["content"], index)
    elif "tool_calls" not in result:
        raise RequestError("messages", f"message {index} has no content")
    if result.get("tool_calls"):
        result["tool_calls"] = [_normal_tool_call(call, index) for call in result["tool_calls"]]
    return result


def _flat_content(content: Any, index: int) -> str | None:
    """Text parts are joined by one space, as SGLang does for templates that take strings."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError("messages", f"the content of message {index} must be a string or a list of parts")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise RequestError("messages", f"message {index} has a part of type {kind!r}; only 'text' is supported")
        if not isinstance(part.get("text"), str):
            raise RequestError("messages", f"message {index} has a text part without text")
        texts.append(part["text"])
    return " ".join(texts)


def _normal_tool_call(call: Any, index: int) -> dict[str, Any]:
    """OpenAI's clients send arguments as JSON text; text that is no JSON object stays as the model wrote it."""
    if not isinstance(call, Mapping):
        raise RequestError("messages", f"message {index} has a tool call that is not an object")
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


def _cut_at_mark(text: str) -> str:
    """Ends the text where the marked message ends. Where the template strips messages, so is the result."""
    at = text.rfind(_END_MARK.rstrip())
    if at < 0:
        raise RequestError("continue_final_message", "the chat template does not show the last message's text")
    kept = text[:at]
    return kept if text.startswith(_END_MARK, at) else kept.rstrip()
