"""Hugging Face folders: `config.json` and one or several safetensors files.

A file is an 8-byte length, a JSON header that places every tensor, and the data (format:
https://huggingface.co/docs/safetensors). Tensors are read with plain reads, not mapped: what a mapping has touched
counts as this process's memory, and a file that is cut short while mapped kills the process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sgjax.models.checkpoint.base import CheckpointError, TensorInfo
from sgjax.models.checkpoint.folder import read_configs, read_json

INDEX_NAME = "model.safetensors.index.json"

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class _Span(NamedTuple):
    path: Path
    offset: int
    nbytes: int


class SafetensorsFolder:
    """A folder in Hugging Face's layout. Only headers are read to open it.

    Raises:
      CheckpointError: a file is missing, truncated or corrupt, or two files hold the same tensor.
    """

    def __init__(self, folder: Path):
        self.config, self.generation_config = read_configs(folder)
        self.tokenizer_source = folder
        self._spans: dict[str, _Span] = {}
        tensors: dict[str, TensorInfo] = {}
        self.tensors: Mapping[str, TensorInfo] = tensors
        index = _read_index(folder)
        for path in sorted({folder / name for name in index.values()}) if index else _weight_files(folder):
            self._add_file(path, tensors)
        for name, file_name in index.items():
            if name not in self.tensors or self.tensors[name].file != str(folder / file_name):
                raise CheckpointError(
                    f"{folder / file_name}: tensor {name} is missing, though {INDEX_NAME} puts it here"
                )
        self.nbytes = sum(span.nbytes for span in self._spans.values())

    def _add_file(self, path: Path, tensors: dict[str, TensorInfo]) -> None:
        for name, (info, span) in read_header(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name} is also in {tensors[name].file}")
            tensors[name], self._spans[name] = info, span

    def read(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise CheckpointError(f"{self.tokenizer_source}: there is no tensor {name}")
        info, (path, offset, nbytes) = self.tensors[name], self._spans[name]
        raw = read_bytes(path, offset, nbytes, name)
        return raw.view(_DTYPES[info.dtype]).reshape(info.shape)


def read_bytes(path: Path, offset: int, nbytes: int, name: str) -> np.ndarray:
    """uint8 (nbytes,): one tensor's bytes, in memory of their own.

    Raises:
      CheckpointError: the file is gone or has become shorter.
    """
    try:
        raw = np.fromfile(path, np.uint8, nbytes, offset=offset)
    except OSError as error:
        raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}") from error
    if raw.size != nbytes:
        raise CheckpointError(
            f"{path}: truncated: tensor {name} needs {nbytes} bytes at {offset}, {raw.size} are there"
        )
    return raw


def read_header(path: Path) -> dict[str, tuple[TensorInfo, _Span]]:
    """The tensors of one safetensors file, with their places.

    Raises:
      CheckpointError: the header is not valid, or places a tensor outside the file.
    """
    try:
        file_bytes = path.stat().st_size
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path}: truncated, or not a safetensors file ({file_bytes} bytes)")
            header = json.loads(file.read(header_bytes), object_pairs_hook=_refuse_duplicates)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, _DuplicateKeyError) as error:
        raise CheckpointError(f"{path}: corrupt safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt safetensors header: not an object")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    return {name: _entry(path, name, fields, data_start, file_bytes) for name, fields in header.items()}


def _entry(path: Path, name: str, fields: Any, data_start: int, file_bytes: int) -> tuple[TensorInfo, _Span]:
    try:
        dtype, shape = fields["dtype"], tuple(int(size) for size in fields["shape"])
        begin, end = (int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt safetensors header: tensor {name}: {fields!r}") from error
    if dtype not in _DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has the unsupported dtype {dtype}")
    needed = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if begin < 0 or min(shape, default=0) < 0 or end - begin != needed:
        raise CheckpointError(
            f"{path}: corrupt: tensor {name} {dtype}{list(shape)} takes {needed} bytes, not {end - begin}"
        )
    if data_start + end > file_bytes:
        raise CheckpointError(
            f"{path}: truncated: tensor {name} ends at byte {data_start + end}, the file at {file_bytes}"
        )
    return TensorInfo(shape, dtype, str(path)), _Span(path, data_start + begin, needed)


class _DuplicateKeyError(ValueError):
    pass


def _refuse_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise _DuplicateKeyError(f"tensor {key} appears twice")
        fields[key] = value
    return fields


def _read_index(folder: Path) -> Mapping[str, str]:
    """Tensor to file name, of a sharded checkpoint; empty for one that is not."""
    path = folder / INDEX_NAME
    if not path.exists():
        return {}
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{path}: tensor {name} is in {file_name!r}, which is not a file of this folder")
        if not (folder / file_name).is_file():
            raise CheckpointError(f"{folder / file_name}: the file is missing, though {INDEX_NAME} puts {name} there")
    return weight_map


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a folder without an index. A lone `model.safetensors` wins: Mistral's folders hold the same
    tensors again as `consolidated.safetensors`, under other names."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    found = f"only PyTorch pickles ({pickles[0].name}), which are not read" if pickles else "no weights"
    raise CheckpointError(f"{folder}: {found}; expected model.safetensors, {INDEX_NAME} or a .gguf file")
