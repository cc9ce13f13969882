"""Generators that a script leaves open."""

from __future__ import annotations

import subprocess
import sys

OPEN_AT_THE_END = """
from sgjax.closing import closed_at_exit

def text():
    try:
        yield "begun"
    finally:
        print(closed_at_exit.__name__, "still works")

kept = closed_at_exit(text())
print(next(kept))
never_begun = closed_at_exit(text())
ended = list(closed_at_exit(text()))
"""


def test_what_is_open_at_the_end_is_closed_before_modules_go():
    done = subprocess.run([sys.executable, "-c", OPEN_AT_THE_END], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["begun", "closed_at_exit still works", "closed_at_exit still works"]
    assert done.stderr == ""
