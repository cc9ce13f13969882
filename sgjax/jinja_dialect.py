"""The Jinja of chat templates, as Hugging Face's checkpoints use it, in a sandbox.

The dialect is that of `transformers.utils.chat_template_utils` (5.23): block whitespace trimmed, `break` and
`continue`, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `{% generation %}` blocks, which
mark the assistant's text for training and mean nothing here.

Below both `sgjax.text`, which renders for models here, and the language, which also renders for models elsewhere.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sgjax.errors import RequestError


def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that renders a template's variables; it raises RequestError("messages") for what it cannot render.

    Raises:
      ValueError: the source is no template.
    """
    try:
        template = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not Jinja: {error}") from error

    def render(variables: Mapping[str, Any]) -> str:
        try:
            return template.render(variables)
        except jinja2.TemplateError as error:
            raise RequestError("messages", f"the chat template refuses them: {error}") from error
        # Templates index and concatenate what they are given; what they cannot handle shows as these.
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise RequestError("messages", f"the chat template cannot render them: {error}") from error

    return render


def variables(source: str) -> set[str]:
    """The variables that a template reads. Raises ValueError when the source is no template."""
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not Jinja: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
