"""From any checkpoint to an Orbax folder that loads fast and sharded: `sgjax models convert`."""

from __future__ import annotations

from pathlib import Path

import jax

from sgjax.config import Dtype
from sgjax.models.checkpoint import open_checkpoint
from sgjax.models.checkpoint.base import CheckpointError
from sgjax.models.checkpoint.orbax import OrbaxFolder, save
from sgjax.models.loader import Progress, load_params
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare


def convert(model_path: str, folder: Path, *, dtype: Dtype = "auto", progress: Progress | None = None) -> None:
    """Writes the model as an Orbax checkpoint with its parameters folded as the engine uses them.

    All parameters pass through this machine's memory, not through an accelerator's.

    Args:
      folder: must not exist yet; it appears when it is complete.
      dtype: of the parameters written; auto is the checkpoint's, bfloat16 for GGUF.

    Raises:
      CheckpointError: the source cannot be read, or `folder` exists.
      ModelError: the architecture is not supported.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; remove it, or name another folder")
    checkpoint = open_checkpoint(model_path)
    if isinstance(checkpoint, OrbaxFolder):
        raise CheckpointError(f"{model_path}: is an Orbax checkpoint already")
    model_config = read_config(checkpoint.config, dtype)
    _, specs = declare(build(model_config))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = load_params(specs, checkpoint, progress=progress)
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
    config["dtype"] = model_config.dtype
    save(folder, params, config, checkpoint.generation_config, checkpoint.tokenizer_source)
