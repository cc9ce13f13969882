"""The `sgjax` command. Subcommands import jax and the HTTP stack when they run, so that `--help` is instant."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from sgjax_server.commands import doctor, generate, models, serve


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; the chosen one's function is in `run`."""
    parser = argparse.ArgumentParser(prog="sgjax", description="Serve and run language models with JAX.")
    parser.add_argument("--version", action="version", version=f"sgjax {importlib.metadata.version('sgjax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (serve, generate, models, doctor):
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has enough (`sgjax generate | head`); nothing more may be written, at exit either.
        sys.stdout = None
        return 1
