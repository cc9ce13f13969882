"""The GGUF container: metadata and where tensors begin. Neither models nor number formats are known here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader takes two seconds for
a vocabulary of 49,000 tokens, because it makes an array of each string; this one takes a tenth of a second.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


class GGUFError(ValueError):
    """Not a GGUF file, or a damaged one. The message begins with the file."""


class GGUFTensor(NamedTuple):
    """A tensor's entry. `shape` is in numpy's order, rows first; `type_id` is ggml's; `offset` is in the file."""

    shape: tuple[int, ...]
    type_id: int
    offset: int


class GGUFContainer(NamedTuple):
    """A parsed file: metadata by key (numbers, strings, lists) and tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_container(path: Path) -> GGUFContainer:
    """Parses a GGUF file's header.

    Raises:
      GGUFError: it is not a GGUF file of version 2 or 3, or its header is damaged.
    """
    try:
        file_bytes = path.stat().st_size
        if file_bytes < 24:
            raise GGUFError(f"{path}: truncated: {file_bytes} bytes are not even a GGUF header")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: mmap.mmap) -> GGUFContainer:
    cursor = _Cursor(path, data)
    if data[:4] != b"GGUF":
        raise GGUFError(f"{path}: not a GGUF file: it begins with {data[:4]!r}")
    version = cursor.scalar("I", start=4)
    if version not in (2, 3):
        raise GGUFError(f"{path}: GGUF version {version} is not supported, only 2 and 3 in little-endian order")
    num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = {}
    for _ in range(num_tensors):
        name = cursor.string()
        if name in entries:
            raise GGUFError(f"{path}: tensor {name} appears twice")
        entries[name] = _tensor_entry(cursor, name)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise GGUFError(f"{path}: general.alignment is {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {name: entry._replace(offset=data_start + entry.offset) for name, entry in entries.items()}
    return GGUFContainer(path, metadata, tensors)


def _tensor_entry(cursor: _Cursor, name: str) -> GGUFTensor:
    """One tensor's entry; its offset is still relative to the data section."""
    num_dimensions = cursor.scalar("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise GGUFError(f"{cursor.path}: corrupt: tensor {name} has {num_dimensions} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(num_dimensions)]))
    return GGUFTensor(shape, cursor.scalar("I"), cursor.scalar("Q"))


def copy_metadata(source: Path, target: Path) -> None:
    """Writes a GGUF file with `source`'s metadata, its tokenizer among it, and no tensors."""
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(source, data)
        version, num_values = cursor.scalar("I", start=4), cursor.scalar("Q", start=16)
        for _ in range(num_values):
            cursor.string()
            cursor.value(cursor.scalar("I"))
        target.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, num_values) + data[24 : cursor.position])


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.position = path, data, 0

    def scalar(self, code: str, start: int | None = None) -> Any:
        return self.scalars(code, 1, start)[0]

    def scalars(self, code: str, count: int, start: int | None = None) -> tuple[Any, ...]:
        position = self.position if start is None else start
        try:
            values = struct.unpack_from(f"<{count}{code}", self.data, position)
        except (struct.error, OverflowError, MemoryError):
            raise self._truncated() from None
        self.position = position + count * struct.calcsize(f"<{code}")
        return values

    def string(self) -> str:
        length = self.scalar("Q")
        end = self.position + length
        if end > len(self.data):
            raise self._truncated()
        try:
            text = self.data[self.position : end].decode()
        except UnicodeDecodeError as error:
            raise GGUFError(f"{self.path}: corrupt: a string at byte {self.position} is not UTF-8: {error}") from None
        self.position = end
        return text

    def value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            return self.scalar(_SCALARS[type_id])
        if type_id == _STRING:
            return self.string()
        if type_id != _ARRAY:
            raise GGUFError(f"{self.path}: corrupt: a metadata value has the unknown type {type_id}")
        item_type, count = self.scalar("I"), self.scalar("Q")
        if item_type in _SCALARS:
            return list(self.scalars(_SCALARS[item_type], count))
        if count > len(self.data):
            raise self._truncated()
        return [self.value(item_type) for _ in range(count)]

    def _truncated(self) -> GGUFError:
        return GGUFError(f"{self.path}: truncated or corrupt: the header runs past byte {len(self.data)}")
