"""What the loader sees of a checkpoint, whatever its format: a config, a tokenizer source and named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file, and the tensor where there is one."""


class TensorInfo(NamedTuple):
    """What is known of a tensor before it is read. `dtype` is as stored: "BF16", "F32", "Q4_1"; `file` for messages."""

    shape: tuple[int, ...]
    dtype: str
    file: str


class Checkpoint(Protocol):
    """An open checkpoint. Tensors have Hugging Face names and orientation, (out, in).

    Attributes:
      config: the content of a Hugging Face `config.json`.
      generation_config: the content of `generation_config.json`, empty when there is none.
      tokenizer_source: the folder with `tokenizer.json` and the like, or the GGUF file.
      tensors: name to shape and dtype; nothing is read to make it.
      nbytes: size of all tensors as stored, in bytes.
    """

    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_source: Path
    tensors: Mapping[str, TensorInfo]
    nbytes: int

    def read(self, name: str) -> np.ndarray:
        """One tensor, possibly a read-only view of the file; float32 when it was stored quantised.

        Raises:
          CheckpointError: there is no such tensor, or its bytes cannot be read.
        """
        ...
