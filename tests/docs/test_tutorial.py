"""docs/tutorial.md runs: its blocks in order, in one namespace, on the embedded model, with the outputs it shows.

A `text` block after a `python` block is what that prints; `...` in it stands for any text. `<!-- check: ... -->` is an
expression that must hold at that place.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sgjax as sgl

from ..serving import served

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
URL = "http://127.0.0.1:30000"
_PART = re.compile(r"^```(python|text)\n(.*?)^```$|^<!-- check: ([^\n]*) -->$", re.MULTILINE | re.DOTALL)


class Part(NamedTuple):
    """A block of the page: code, what it prints, or a check. `line` is its first line."""

    kind: str
    text: str
    line: int


def parts(page: str) -> list[Part]:
    found = []
    for match in _PART.finditer(page):
        kind = match[1] or "check"
        line = page.count("\n", 0, match.start()) + (1 if kind == "check" else 2)
        found.append(Part(kind, match[2] or match[3], line))
    return found


def output_of(part: Part, namespace: dict[str, Any]) -> str:
    """Runs a block; tracebacks name the page's lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (part.line - 1) + part.text, str(TUTORIAL), "exec"), namespace)
    return printed.getvalue()


def matches(shown: str, printed: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, shown.split("..."))), printed) is not None


def close(namespace: dict[str, Any]) -> None:
    """What the page would do at its end, also when it does not get there."""
    sgl.set_default_backend(None)
    if "runtime" in namespace:
        namespace["runtime"].shutdown()


def test_tutorial() -> None:
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    printed = ""
    with contextlib.ExitStack() as stack:
        stack.callback(close, namespace)
        for part in parts(TUTORIAL.read_text(encoding="utf-8")):
            if part.kind == "text":
                assert matches(part.text, printed), f"line {part.line}: shown\n{part.text}\nprinted\n{printed}"
                printed = ""
            elif part.kind == "check":
                assert eval(part.text, namespace), f"line {part.line}: {part.text}"
            else:
                assert not printed, f"line {part.line}: the block before prints what the page does not show:\n{printed}"
                if URL in part.text:
                    url = stack.enter_context(served(namespace["runtime"].engine))
                    part = part._replace(text=part.text.replace(URL, url))
                printed = output_of(part, namespace)
        assert not printed


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [("a\n", "a\n", True), ("a ... c\n", "a b c\n", True), ("a\n", "b\n", False), ("a...\n", "a\nb\n", False)],
)
def test_outputs_are_compared(shown: str, printed: str, expected: bool) -> None:
    assert matches(shown, printed) == expected
