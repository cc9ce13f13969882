"""A chat template as text, rendered here because the model is elsewhere.

The same dialect as `sgjax.text.chat_template`, which the language may not import; roles and texts are all it needs.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from sgjax.errors import RequestError
from sgjax.lang.chat_format import Render


def compile_template(source: str, special_tokens: Mapping[str, str]) -> Render:
    """A function that renders messages.

    Raises:
      ValueError: the source is no template.
    """
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    # These blocks mark the assistant's text for training.
    for block in ("generation", "endgeneration"):
        for begin, end in (("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")):
            source = source.replace(f"{begin} {block} {end}", "")
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not Jinja: {error}") from error
    variables = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **special_tokens}

    def render(messages: Any, add_generation_prompt: bool) -> str:
        try:
            return template.render(variables, messages=messages, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RequestError("messages", f"the chat template refuses them: {error}") from error

    return render


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
