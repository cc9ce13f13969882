"""Splits what a reasoning model wrote into its reasoning and its answer."""

from __future__ import annotations

from typing import NamedTuple


class _Markup(NamedTuple):
    begin: str
    end: str
    starts_inside: bool = False  # the chat template has opened the reasoning already


_MARKUP = {
    "deepseek-r1": _Markup("<think>", "</think>", starts_inside=True),
    "deepseek-v3": _Markup("<think>", "</think>"),
    "qwen3": _Markup("<think>", "</think>"),
    "qwen3-thinking": _Markup("<think>", "</think>", starts_inside=True),
    "glm45": _Markup("<think>", "</think>"),
    "step3": _Markup("<think>", "</think>", starts_inside=True),
    "minimax": _Markup("<think>", "</think>", starts_inside=True),
    "kimi": _Markup("◁think▷", "◁/think▷"),
}


def check_model_type(model_type: str) -> str:
    """The name as it is in the table. Raises ValueError for an unknown one."""
    if model_type.lower() not in _MARKUP:
        raise ValueError(f"no reasoning markup is known for {model_type!r}, only for {', '.join(_MARKUP)}")
    return model_type.lower()


def separate(text: str, model_type: str) -> tuple[str, str]:
    """The reasoning and the answer, without the markup between. Reasoning that never ends leaves no answer."""
    markup = _MARKUP[check_model_type(model_type)]
    stripped = text.lstrip()
    if stripped.startswith(markup.begin):
        inner = stripped.removeprefix(markup.begin)
    elif markup.starts_inside or markup.end in text:
        inner = text
    else:
        return "", text
    reasoning, _, answer = inner.partition(markup.end)
    return reasoning.strip(), answer.lstrip("\n")
