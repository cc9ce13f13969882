"""docs/reference/ is what the docstrings say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import sgjax

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_reference_is_current() -> None:
    make = script()
    assert make.TARGET.read_text(encoding="utf-8") == make.reference(), "run `make reference`"


def test_every_public_name_is_in_it() -> None:
    make = script()
    assert set(sgjax.__all__) <= {name for names in make.SECTIONS.values() for name in names}


def test_docstrings_become_markdown() -> None:
    doc = "Does it.\n\n    code(1)\n\n    code(2)\n\nArgs:\n  a: one\n    more.\n  *b, c: two.\n\nReturns:\n  That."
    assert script().markdown(doc) == (
        "Does it.\n\n```python\ncode(1)\n\ncode(2)\n```\n\nArgs:\n\n- `a`: one\n  more.\n- `*b, c`: two.\n\n"
        "Returns:\n\nThat.\n"
    )
