"""`sgjax models`: list, pull, inspect and convert checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import functools
from pathlib import Path
from typing import get_args

from sgjax.config import Dtype
from sgjax_server.commands.loading import explain
from sgjax_server.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("models", help="list, pull, inspect and convert checkpoints")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    convert = actions.add_parser("convert", help="write an Orbax checkpoint, which loads fast and sharded")
    convert.add_argument("model", help="checkpoint folder, GGUF file, hub id, or 'embedded'")
    convert.add_argument("folder", type=Path, help="folder to write; must not exist")
    convert.add_argument("--dtype", choices=get_args(Dtype), default="auto", help="auto is the checkpoint's")
    convert.set_defaults(run=functools.partial(_run, _convert))


def _run(action, args: argparse.Namespace) -> int:
    with contextlib.closing(ProgressLine()) as progress:
        try:
            action(args, progress)
        except Exception as error:
            progress.close()
            explain(error)
            return 1
    return 0


def _convert(args: argparse.Namespace, progress: ProgressLine) -> None:
    from sgjax.models.convert import convert

    def on_bytes(done: int, total: int) -> None:
        progress("reading weights", done / total)

    convert(args.model, args.folder, dtype=args.dtype, progress=on_bytes)
    progress.close()
    print(f"Wrote {args.folder}. Serve it with: sgjax serve --model-path {args.folder}")
