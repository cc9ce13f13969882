"""A chat template as text, rendered here because the model is elsewhere. Roles and texts are all it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgjax import jinja_dialect
from sgjax.lang.chat_format import Render


def compile_template(source: str, special_tokens: Mapping[str, str]) -> Render:
    """A function that renders messages.

    Raises:
      ValueError: the source is no template.
    """
    template = jinja_dialect.compile_template(source)
    variables = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **special_tokens}

    def render(messages: Any, add_generation_prompt: bool) -> str:
        return template({**variables, "messages": messages, "add_generation_prompt": add_generation_prompt})

    return render
