"""Folders that `sgjax models convert` writes: parameters folded and cast once, restored straight onto their shardings.

    config.json, generation_config.json      as in the source
    tokenizer.json, ... or tokenizer.gguf    the tokenizer, wherever the source had it
    sgjax_checkpoint.json                    marks the folder: the layout of its parameters, the sizes of its files
    params/                                  the Orbax checkpoint

Orbax is imported when such a folder is used, and not before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from sgjax.gguf_container import copy_metadata
from sgjax.models.checkpoint.base import CheckpointError, TensorInfo
from sgjax.models.checkpoint.folder import TOKENIZER_FILES, read_configs, read_json

MARKER = "sgjax_checkpoint.json"
LAYOUT = 1
"""Raised whenever a parameter is folded in another way than before: shapes alone would not show it."""

_PARAMS = "params"
_TOKENIZER_GGUF = "tokenizer.gguf"
_NUM_READERS = 2
# One parameter is read while another goes to its devices. More at a time is no faster and holds more memory.
_LIMITS = {
    "cache_pool": {"total_bytes_limit": 1 << 20},
    "data_copy_concurrency": {"limit": 1},
    "file_io_concurrency": {"limit": 1},
}
_NAME_OF = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class OrbaxFolder:
    """An Orbax checkpoint. It has no tensors of Hugging Face's to `read`; `restore` gives all parameters at once.

    Attributes:
      tensors: the parameters by path, "layers/0/attn/wqkv". For the others see `Checkpoint`.

    Raises:
      CheckpointError: the folder is incomplete, or of another version.
    """

    def __init__(self, folder: Path):
        self.config, self.generation_config = read_configs(folder)
        _check_files(folder)
        in_gguf = (folder / _TOKENIZER_GGUF).is_file()
        self.tokenizer_source = folder / _TOKENIZER_GGUF if in_gguf else folder
        self._params = folder / _PARAMS
        stored = _flatten(_read_metadata(self._params))
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(array.shape), _NAME_OF.get(str(array.dtype), str(array.dtype)), str(self._params))
            for name, array in stored.items()
        }
        self.nbytes = sum(jax.ShapeDtypeStruct(a.shape, a.dtype).size * a.dtype.itemsize for a in stored.values())

    def restore(self, abstract: Any) -> Any:
        """The parameters, each read by its devices and cast to the dtype asked for.

        Args:
          abstract: a tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          CheckpointError: the checkpoint holds other parameters, or cannot be read.
        """
        import tensorstore

        self._check(abstract)
        context = tensorstore.Context(_LIMITS)
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            pending = jax.tree_util.tree_map_with_path(
                lambda path, array: readers.submit(self._read, _name(path), array, context), abstract
            )
            return jax.tree.map(lambda future: future.result(), pending)

    def _read(self, name: str, array: jax.ShapeDtypeStruct, context: Any) -> jax.Array:
        """One parameter. Orbax itself reads all at once: twice the processor time, and half as much memory again."""
        import tensorstore

        base = {"driver": "file", "path": f"{self._params.absolute()}/"}
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}}
        try:
            stored = tensorstore.cast(tensorstore.open(spec, context=context).result(), array.dtype)
            restored = jax.make_array_from_callback(
                array.shape, array.sharding, lambda index: stored[index].read().result()
            )
            # Waiting keeps host memory to a parameter per reader.
            return jax.block_until_ready(restored)
        except ValueError as error:  # tensorstore's only kind
            raise CheckpointError(f"{self._params}: parameter {name}: {_first_line(error)}") from error

    def _check(self, abstract: Any) -> None:
        wanted = _flatten(abstract)
        for name, array in wanted.items():
            if name not in self.tensors:
                raise CheckpointError(f"{self._params}: parameter {name} {array.shape} is missing")
            if self.tensors[name].shape != array.shape:
                raise CheckpointError(
                    f"{self._params}: parameter {name} has shape {self.tensors[name].shape}, expected {array.shape}"
                )
        for name in self.tensors:
            if name not in wanted:
                raise CheckpointError(f"{self._params}: parameter {name} has no place in this architecture")


def save(
    folder: Path, params: Any, config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer_source: Path
) -> None:
    """Writes a folder that `OrbaxFolder` opens. It appears whole or not at all.

    Raises:
      CheckpointError: the folder is there already.
    """
    import orbax.checkpoint as ocp

    folder = folder.expanduser().absolute()
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; remove it, or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _checkpointer().save(partial / _PARAMS, args=ocp.args.PyTreeSave(params))
        _write_json(partial / "config.json", config)
        if generation_config:
            _write_json(partial / "generation_config.json", generation_config)
        _copy_tokenizer(tokenizer_source, partial)
        _write_json(partial / MARKER, {"layout": LAYOUT, "files": _file_sizes(partial)})
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of the parameters. Orbax notices a truncated file, but names neither it nor the trouble."""
    files = sorted(path for path in (folder / _PARAMS).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_files(folder: Path) -> None:
    marker = read_json(folder / MARKER)
    if marker.get("layout") != LAYOUT:
        raise CheckpointError(f"{folder / MARKER}: layout {marker.get('layout')!r} is not {LAYOUT}; convert it again")
    there = _file_sizes(folder)
    for name, size in marker.get("files", {}).items():
        if name not in there:
            raise CheckpointError(f"{folder / name}: the file is missing")
        if there[name] != size:
            raise CheckpointError(f"{folder / name}: truncated or changed: {there[name]} bytes, expected {size}")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if source.is_file():
        copy_metadata(source, folder / _TOKENIZER_GGUF)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", folder / "additional_chat_templates")


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    # Compressed, weights shrink by a fifth and take twice as long to restore.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _read_metadata(params: Path) -> Any:
    try:
        return _checkpointer().metadata(params.absolute()).item_metadata.tree
    except Exception as error:  # missing or damaged _METADATA: KeyError, ValueError, JSON and tensorstore errors
        raise CheckpointError(f"{params}: not a readable Orbax checkpoint: {_first_line(error)}") from error


def _flatten(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: tuple[Any, ...]) -> str:
    """A parameter's name. Orbax's metadata has text for the layers' numbers, which is the same here."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
