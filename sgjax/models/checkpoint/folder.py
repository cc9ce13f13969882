"""What every checkpoint folder in Hugging Face's layout has besides weights: JSON files, and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sgjax.models.checkpoint.base import CheckpointError, TensorInfo

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json`, which must be there, and `generation_config.json`, empty when it is not."""
    generation_path = folder / "generation_config.json"
    return read_json(folder / "config.json"), read_json(generation_path) if generation_path.exists() else {}


class ConfigFolder:
    """A checkpoint without weights: enough for `--load-format dummy`."""

    tensors: Mapping[str, TensorInfo] = MappingProxyType({})
    nbytes = 0

    def __init__(self, folder: Path):
        self.config, self.generation_config = read_configs(folder)
        self.tokenizer_source = folder

    def read(self, name: str) -> np.ndarray:
        raise CheckpointError(f"{self.tokenizer_source}: opened without weights, so there is no tensor {name}")
