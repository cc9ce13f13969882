"""What chat turns look like as text: from the model's own chat template, or from fixed strings.

A program builds its text turn by turn, a template renders a conversation as a whole. The invariant of `TemplateFormat`:
wherever a model is asked, and after every turn, the text is what the template renders for the same messages. So the
text is rendered from the messages, for as long as that leaves standing what a model has already seen (the `Anchor`):
that text is in the KV cache, and what was generated depends on it. Where a template rewrites its past (Qwen3 drops
earlier reasoning, some put the system text into the last user turn), the text stays as it was seen, and goes on with
the strings that the template puts around a turn in a conversation of the same roles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sgjax.errors import RequestError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]  # messages, add_generation_prompt -> text; raises RequestError

# Stands where a turn's text ends. Templates may strip spaces around it and must not find their own markup in it.
_MARK = "\x02the turn ends\x03"
_PAST = "\x02what was said\x03"


class Anchor(NamedTuple):
    """Text that stands, and how many of the messages it holds."""

    text: str
    num_messages: int


class ChatFormat(Protocol):
    """The text of conversations. All methods are pure, and raise RequestError for what the format refuses."""

    def closed(self, anchor: Anchor, messages: Sequence[Message]) -> str:
        """The whole text after these messages."""
        ...

    def opened(self, anchor: Anchor, messages: Sequence[Message], role: str, content: str) -> str:
        """The whole text inside a turn after these messages, which holds `content` so far."""
        ...

    def settled(self, anchor: Anchor, messages: Sequence[Message], seen: str) -> str:
        """The whole text after these messages; a model has seen or written `seen`, which lacks the last turn's end."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedFormat:
    """Strings before and after the turns of each role, for models whose template is not at hand.

    Attributes:
      system_text: what a conversation starts with that has no system turn.
    """

    name: str
    turns: Mapping[str, tuple[str, str]]
    start: str = ""
    system_text: str | None = None

    def closed(self, anchor: Anchor, messages: Sequence[Message]) -> str:
        text = anchor.text
        for index in range(anchor.num_messages, len(messages)):
            begin, end = self._around(index, messages[index]["role"])
            text += begin + text_of(messages[index]) + end
        return text

    def opened(self, anchor: Anchor, messages: Sequence[Message], role: str, content: str) -> str:
        return self.closed(anchor, messages) + self._around(len(messages), role)[0] + content

    def settled(self, anchor: Anchor, messages: Sequence[Message], seen: str) -> str:
        return seen + self._around(len(messages) - 1, messages[-1]["role"])[1]

    def _around(self, index: int, role: str) -> tuple[str, str]:
        begin, end = self.turns[role]
        if index == 0:
            if role != "system" and self.system_text is not None:
                before, after = self.turns["system"]
                begin = before + self.system_text + after + begin
            begin = self.start + begin
        return begin, end


def _fixed(name: str, begin: str, end: str, **others: Any) -> FixedFormat:
    return FixedFormat(name, {role: (begin.format(role), end) for role in ("system", "user", "assistant")}, **others)


_GEMMA = {"system": ("", "\n\n"), "user": ("<start_of_turn>user\n", "<end_of_turn>\n")}

# Formats by name, for servers that do not tell their template. BOS is left to the server.
FIXED_FORMATS = {
    format.name: format
    for format in (
        FixedFormat(
            "default", {"system": ("SYSTEM:", "\n"), "user": ("USER:", "\n"), "assistant": ("ASSISTANT:", "\n")}
        ),
        _fixed("chatml", "<|im_start|>{}\n", "<|im_end|>\n"),
        _fixed("qwen", "<|im_start|>{}\n", "<|im_end|>\n", system_text="You are a helpful assistant."),
        _fixed("llama-3-instruct", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
        FixedFormat(
            "vicuna_v1.1",
            {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
            system_text="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions.",
        ),
        FixedFormat("mistral", {"system": ("", "\n\n"), "user": ("[INST] ", " [/INST]"), "assistant": (" ", "</s>")}),
        FixedFormat("gemma-it", {**_GEMMA, "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n")}),
    )
}

# Parts of model names, the first that fits.
_FAMILIES = (
    ("vicuna", "vicuna_v1.1"),
    ("llama-3", "llama-3-instruct"),
    ("qwen3", "chatml"),
    ("qwen", "qwen"),
    ("mistral", "mistral"),
    ("mixtral", "mistral"),
    ("gemma", "gemma-it"),
    ("smollm", "chatml"),
    ("yi-", "chatml"),
    ("hermes", "chatml"),
)


def fixed_format_of(model_path: str) -> FixedFormat:
    """The format that a model's name suggests; "default" when it suggests none."""
    lowered = model_path.lower()
    return FIXED_FORMATS[next((name for part, name in _FAMILIES if part in lowered), "default")]


class TemplateFormat:
    """A model's chat template.

    Args:
      render: the template.
    """

    def __init__(self, render: Render):
        self._render = render

    def closed(self, anchor: Anchor, messages: Sequence[Message]) -> str:
        if len(messages) == anchor.num_messages:
            return anchor.text
        full, refusal = self._try(messages)
        if full is not None and full.startswith(anchor.text):
            return full
        later = messages[anchor.num_messages :]
        if all(message["role"] == "system" for message in later):
            return anchor.text  # such templates show the system text with the user turn that follows
        if refusal is not None:
            raise refusal
        text = anchor.text
        for index in range(anchor.num_messages, len(messages)):
            begin, end = self._around(messages[:index], messages[index]["role"])
            text += begin + text_of(messages[index]) + end
        return text

    def opened(self, anchor: Anchor, messages: Sequence[Message], role: str, content: str) -> str:
        prompts_itself = role == "assistant" and not content
        if prompts_itself and messages:
            full, _ = self._try(messages, add_generation_prompt=True)
        else:
            full, _ = self._try([*messages, {"role": role, "content": content + _MARK}])
            full = None if full is None or _MARK not in full else full[: full.rindex(_MARK)]
        if full is not None and full.startswith(anchor.text):
            return full
        before = self.closed(anchor, messages)
        if role == "system":
            return before
        begin = self._prompt(messages) if prompts_itself and messages else self._around(messages, role)[0]
        return before + begin + content

    def settled(self, anchor: Anchor, messages: Sequence[Message], seen: str) -> str:
        full, _ = self._try(messages)
        at = len(anchor.text)
        if full is not None and full.startswith(anchor.text) and _same_but_spaces(full[at:], seen[at:]):
            return full
        return seen + self._around(messages[:-1], messages[-1]["role"])[1]

    def _try(self, messages: Sequence[Message], add_generation_prompt: bool = False):
        """The rendered text or None, and why."""
        try:
            return self._render([_with_text(message) for message in messages], add_generation_prompt), None
        except RequestError as error:
            return None, error

    def _around(self, messages: Sequence[Message], role: str) -> tuple[str, str]:
        """What the template puts before and after a turn that follows turns of these roles.

        Raises:
          RequestError: it cannot be told.
        """
        before, end = self._divided(messages, role)
        if messages:
            last_end = self._divided(messages[:-1], messages[-1]["role"])[1]
            if not before.startswith(last_end):
                raise RequestError("messages", f"the chat template cannot add a turn of the {role} to what was seen")
            before = before[len(last_end) :]
        return before, end

    def _divided(self, messages: Sequence[Message], role: str) -> tuple[str, str]:
        """What stands between the contents of the last of these messages and of a turn that follows; and after that."""
        past = [{"role": message["role"], "content": "x"} for message in messages]
        if past:
            past[-1]["content"] = _PAST
        full = self._render([*past, {"role": role, "content": _MARK}], False)
        start = full.rfind(_PAST) + len(_PAST) if past else 0
        if full.count(_MARK) != 1 or (past and _PAST not in full):
            raise RequestError("messages", f"the chat template does not show a turn of the {role}")
        before, end = full[start:].split(_MARK)
        return before, end

    def _prompt(self, messages: Sequence[Message]) -> str:
        """What it puts where the model goes on after turns of these roles."""
        past = [{"role": message["role"], "content": "x"} for message in messages]
        before = self._render(past, False)
        full = self._render(past, True)
        return full[len(before) :] if full.startswith(before) else self._around(messages, "assistant")[0]


def text_of(message: Message) -> str:
    """A message's text without its pictures."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _with_text(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": text_of(message)}


def _same_but_spaces(full: str, seen: str) -> bool:
    """Whether `full` goes on from `seen`, apart from spaces, which templates trim."""
    return "".join(full.split()).startswith("".join(seen.split()))
