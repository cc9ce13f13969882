"""What the commands that load a model share."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from sgjax.config import ConfigError, EngineConfig
from sgjax_server.flags import add_flags, add_sglang_flags

if TYPE_CHECKING:
    from sgjax.engine import Engine


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine")
    add_sglang_flags(parser)


def load_engine(config: EngineConfig, on_progress: Callable[[str, float], None]) -> Engine:
    """Imports jax and makes the engine.

    Raises:
      ConfigError, CheckpointError, ModelError: what the user gave cannot be served; `explain` tells them apart.
    """
    on_progress("starting jax", 0.0)
    from sgjax.engine import Engine

    return Engine(**dataclasses.asdict(config), on_progress=on_progress)


def explain(error: BaseException) -> None:
    """Says on stderr why a model could not be loaded; with a traceback only where it is a defect of sgjax."""
    from sgjax.models.checkpoint.base import CheckpointError
    from sgjax.models.errors import ModelError

    if isinstance(error, ConfigError):
        print(
            f"sgjax: --{error.field.replace('_', '-')}: {str(error).removeprefix(f'{error.field}: ')}", file=sys.stderr
        )
    elif isinstance(error, (CheckpointError, ModelError)):
        print(f"sgjax: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print("sgjax: the model could not be loaded; 'sgjax doctor' may say what is missing", file=sys.stderr)
