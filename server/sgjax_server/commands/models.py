"""`sgjax models`: list, pull, inspect and convert checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from sgjax.config import Dtype
from sgjax_server.commands.loading import explain
from sgjax_server.progress import ProgressLine, human_bytes

_MODEL_HELP = "checkpoint folder, GGUF file, hub id, or 'embedded'"


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("models", help="list, pull, inspect and convert checkpoints")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="checkpoints on this machine that can be served without a network")
    listing.set_defaults(run=functools.partial(_run, _list))

    pull = actions.add_parser("pull", help="download a checkpoint")
    pull.add_argument("model", help=_MODEL_HELP)
    pull.set_defaults(run=functools.partial(_run, _pull))

    inspect = actions.add_parser("inspect", help="show what a checkpoint holds, and whether it can be served")
    inspect.add_argument("model", help=_MODEL_HELP)
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.set_defaults(run=functools.partial(_run, _inspect))

    convert = actions.add_parser("convert", help="write an Orbax checkpoint, which loads fast and sharded")
    convert.add_argument("model", help=_MODEL_HELP)
    convert.add_argument("folder", type=Path, help="folder to write; must not exist")
    convert.add_argument("--dtype", choices=get_args(Dtype), default="auto", help="auto is the checkpoint's")
    convert.set_defaults(run=functools.partial(_run, _convert))


def _run(action: Callable[[argparse.Namespace, ProgressLine], None], args: argparse.Namespace) -> int:
    with contextlib.closing(ProgressLine()) as progress:
        try:
            action(args, progress)
        except Exception as error:
            progress.close()
            explain(error)
            return 1
    return 0


def _list(args: argparse.Namespace, progress: ProgressLine) -> None:
    from sgjax.models.catalog import list_models

    models = list_models()
    for model in models:
        print(f"{human_bytes(model.size_bytes):>10}  {model.model_path}")
    if not models:
        print("None. 'sgjax models pull embedded' fetches the default model.", file=sys.stderr)


def _pull(args: argparse.Namespace, progress: ProgressLine) -> None:
    from sgjax.models.catalog import pull

    path = pull(args.model, lambda label, done, total: progress(label, done / total))
    progress.close()
    print(path)


def _inspect(args: argparse.Namespace, progress: ProgressLine) -> None:
    from sgjax.models.catalog import inspect

    found = inspect(args.model)
    print(f"path          {found.path}")
    print(f"format        {found.format}")
    print(f"architecture  {found.architecture}")
    print(f"parameters    {found.num_params:,} in {len(found.tensors)} tensors, {human_bytes(found.size_bytes)}")
    for dtype, (num_tensors, num_params) in found.dtypes.items():
        print(f"  {dtype:<11} {num_tensors} tensors, {num_params:,} parameters")
    print(f"context       {found.context_length} tokens")
    print(f"tokenizer     {found.tokenizer or 'none; give one with --tokenizer-path'}")
    print(f"can be served {'yes' if found.problem is None else f'no: {found.problem}'}")
    for name, info in found.tensors.items() if args.tensors else ():
        print(f"  {name}  {info.dtype} {list(info.shape)}")


def _convert(args: argparse.Namespace, progress: ProgressLine) -> None:
    from sgjax.models.convert import convert

    def on_bytes(done: int, total: int) -> None:
        progress("reading weights", done / total)

    convert(args.model, args.folder, dtype=args.dtype, progress=on_bytes)
    progress.close()
    print(f"Wrote {args.folder}. Serve it with: sgjax serve --model-path {args.folder}")
