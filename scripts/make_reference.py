"""Writes docs/reference/language.md from signatures and docstrings: `make reference`."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "language.md"
MAX_LINE = 100  # characters of a signature before each parameter gets a line
ROLES = tuple(f"{role}{end}" for role in ("system", "user", "assistant") for end in ("", "_begin", "_end"))
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
# Names by heading, with their modules below sgjax where they are not sgjax's own.
SECTIONS = {
    "Programs": ("function", "SglFunction", "ProgramError", "ProgramCancelled", "TraceError"),
    "Generating": ("gen", "gen_int", "gen_string", "select", *METHODS, "separate_reasoning", "image", "video"),
    "Turns": ROLES,
    "States": ("ProgramState", "ProgramStateGroup", "Usage"),
    "Conditions": ("contains", "length", "not_", "all_of", "any_of"),
    "Backends": (
        *("Runtime", "set_default_backend", "flush_cache", "get_server_info", "RuntimeEndpoint", "OpenAI", "Anthropic"),
        *("LiteLLM", "lang.backends.engine.EngineBackend", "lang.backends.engine.OwnedEngine"),
        *("lang.backends.http.EndpointError", "lang.backends.base.Backend", "lang.backends.base.Completion"),
        "lang.backends.base.Unsupported",
    ),
    "Sampling parameters": ("SamplingParams",),
    "The engine": (
        *("Engine", "Request", "GenerateOutput", "RequestError", "QueueFull", "EngineError"),
        *("types.FinishReason", "types.Receipt", "types.TokenLogprobs"),
    ),
}
HEAD = """# Reference: the frontend language

Made from the docstrings by `make reference`: edit those. After `import sgjax as sgl` all names are `sgl.name`, but for
those with a module. `SamplingParams` and `Engine` are here too, since programs and scripts share them.
"""
_MADE_BY_OTHERS = ("SglFunction", "ProgramState", "ProgramStateGroup", "OwnedEngine")
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises): ?(.*)")
_ITEM = re.compile(r"([\w*.]+(?:, [\w*.]+)*): (.+)")


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, names in SECTIONS.items():
        lines.append(f"## {title}\n")
        for path in names:
            module, _, name = f"sgjax.{path}".rpartition(".")
            label = name if module == "sgjax" else f"{module}.{name}"
            lines += entry(label, getattr(importlib.import_module(module), name), name, "###")
    return "\n".join(lines).rstrip() + "\n"


def entry(label: str, value: Any, name: str, mark: str) -> Iterator[str]:
    """One name: its heading, signature and docstring, and for a class its methods."""
    yield f"{mark} {label}\n"
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property)):
        source = inspect.getsource(importlib.import_module(type(value).__module__))
        yield markdown(re.findall(rf'^{name} = .*?^"""(.*?)"""', source, re.MULTILINE | re.DOTALL)[0])
        return
    if shown := signature(value, name):
        yield f"```python\n{shown}\n```\n"
    if doc := inspect.getdoc(value):
        yield markdown(doc)
    for method, function in methods(value) if inspect.isclass(value) else ():
        yield from entry(f"{name}.{method}", function, method, mark + "#")


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties in the order of the source, inherited ones too; of a backend, what is its own."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("sgjax"):
            found.update(vars(base))
    protocol = importlib.import_module("sgjax.lang.backends.base").Backend
    is_backend = cls is not protocol and hasattr(cls, "prefill") and hasattr(cls, "select")
    for name in found:
        member = inspect.getattr_static(cls, name)
        is_method = inspect.isfunction(getattr(member, "__func__", member)) or isinstance(member, property)
        if is_method and not name.startswith("_") and not (is_backend and hasattr(protocol, name)):
            yield name, member if isinstance(member, property) else getattr(cls, name)


def signature(value: Any, name: str) -> str:
    """A function's head, a constructor's, or the fields of a dataclass; empty where there is none to show."""
    function: Any = value.fget if isinstance(value, property) else value
    node: Any = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if isinstance(value, property):
        return f"{name}: {_source(node.returns)}"
    if isinstance(node, ast.ClassDef):
        inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if not inits or name in _MADE_BY_OTHERS:
            fields = [_source(one) for one in node.body if isinstance(one, ast.AnnAssign)]
            return "\n".join([f"class {name}:", *(f"    {field}" for field in fields)]) if fields else ""
        node = inits[0]
    head = ("async " if isinstance(node, ast.AsyncFunctionDef) else "") + name
    tail = f" -> {_source(node.returns)}" if node.returns and node.name != "__init__" else ""
    pieces = list(parameters(node.args))
    line = f"{head}({', '.join(pieces)}){tail}"
    if len(line) <= MAX_LINE:
        return line
    return "\n    ".join([f"{head}(", *(f"{piece}," for piece in pieces)]) + f"\n){tail}"


def parameters(args: ast.arguments) -> Iterator[str]:
    """Each parameter with its annotation and default."""
    plain = [arg for arg in args.posonlyargs + args.args if arg.arg not in ("self", "cls")]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    yield from map(_parameter, plain, defaults)
    if args.vararg or args.kwonlyargs:
        yield f"*{_source(args.vararg)}" if args.vararg else "*"
    yield from map(_parameter, args.kwonlyargs, args.kw_defaults)
    if args.kwarg:
        yield f"**{_source(args.kwarg)}"


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    return _source(arg) + ("" if default is None else f" = {_source(default)}")


def _source(node: ast.AST) -> str:
    """As Python, with the quotes that ruff writes."""
    return re.sub(r"'([^'\"\\\\]*)'", r'"\1"', ast.unparse(node))


def markdown(doc: str) -> str:
    """A Google-style docstring: sections become lists, indented examples code."""
    lines: list[str] = []
    for is_code, blocks in itertools.groupby(doc.split("\n\n"), key=lambda block: block.startswith("    ")):
        text = "\n\n".join(blocks)
        lines += [f"```python\n{textwrap.dedent(text)}\n```"] if is_code else map(_line, text.splitlines())
        lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _line(line: str) -> str:
    if match := _SECTION.fullmatch(line):
        return f"\n{match[1]}:\n" + (f"\n{match[2]}" if match[2] else "")
    if line.startswith("  ") and line[2] != " " and (match := _ITEM.fullmatch(line.strip())):
        return f"- `{match[1]}`: {match[2]}"
    return ("  " if line.startswith("    ") else "") + line.strip()


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
