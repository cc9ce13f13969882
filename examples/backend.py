"""What the examples run on: the embedded model in this process, or a server."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import sgjax as sgl


@contextlib.contextmanager
def open_backend() -> Iterator[Any]:
    """The backend that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", help="a running server, such as http://127.0.0.1:30000; default: the embedded model")
    args = parser.parse_args()
    if args.url:
        yield sgl.RuntimeEndpoint(args.url)
    else:
        with sgl.Runtime("embedded") as runtime:
            yield runtime


def print_usage(*states: sgl.ProgramState) -> None:
    """Says how much of the prompts the prefix cache had."""
    total = sum((state.usage() for state in states), sgl.Usage())
    print(
        f"\n{total.num_requests} requests: {total.prompt_tokens} prompt tokens, {total.cached_tokens} of them cached"
        f" ({total.hit_rate:.0%}); {total.completion_tokens} tokens generated"
    )
