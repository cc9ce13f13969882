"""Checkpoints: safetensors folders, GGUF files, Orbax folders, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sgjax.config import LoadFormat
from sgjax.models.checkpoint.base import Checkpoint, CheckpointError, TensorInfo
from sgjax.models.checkpoint.folder import ConfigFolder
from sgjax.models.checkpoint.gguf import GGUFFile
from sgjax.models.checkpoint.hub import resolve
from sgjax.models.checkpoint.orbax import MARKER, OrbaxFolder
from sgjax.models.checkpoint.safetensors import SafetensorsFolder

__all__ = ["Checkpoint", "CheckpointError", "OrbaxFolder", "TensorInfo", "detect_format", "open_checkpoint", "resolve"]


def open_checkpoint(model_path: str, load_format: LoadFormat = "auto") -> Checkpoint | OrbaxFolder:
    """Opens what `model_path` names, downloading it if need be. No weights are read yet.

    Args:
      load_format: "auto" looks at what is there; "dummy" needs only the config.

    Raises:
      CheckpointError: there is no such checkpoint, it is corrupt, or it is not of the format that was asked for.
    """
    path = resolve(model_path, with_weights=load_format != "dummy")
    if load_format == "dummy" and (path / "config.json").is_file():
        return ConfigFolder(path)
    found, path = detect_format(path)
    if load_format not in ("auto", "dummy", found):
        raise CheckpointError(f"{path}: holds {found} weights, not {load_format} as load_format says")
    return _OPENERS[found](path)


_OPENERS: dict[str, Callable[[Path], Checkpoint | OrbaxFolder]] = {
    "gguf": GGUFFile,
    "orbax": OrbaxFolder,
    "safetensors": SafetensorsFolder,
}


def detect_format(path: Path) -> tuple[LoadFormat, Path]:
    """The format of a folder or file, and the path to open: a folder with one GGUF file means that file."""
    if path.is_file():
        return "gguf", path
    if (path / MARKER).is_file():
        return "orbax", path
    gguf_files = sorted(path.glob("*.gguf"))
    if not gguf_files or any(path.glob("*.safetensors")):
        return "safetensors", path
    if len(gguf_files) > 1:
        names = ", ".join(file.name for file in gguf_files)
        raise CheckpointError(f"{path}: holds several GGUF files, name one of them: {names}")
    return "gguf", gguf_files[0]
