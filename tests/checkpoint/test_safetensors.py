from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sgjax.models.checkpoint import CheckpointError, open_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("num_shards", [1, 3])
def test_round_trip(write_folder, tensors, num_shards):
    folder = write_folder(tensors, num_shards)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, expected in tensors.items():
        info, array = checkpoint.tensors[name], checkpoint.read(name)
        assert (info.shape, info.dtype) == (expected.shape, "BF16")
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array, expected)
    assert checkpoint.nbytes == sum(array.nbytes for array in tensors.values())
    assert checkpoint.config["vocab_size"] == 96
    assert checkpoint.generation_config["temperature"] == 0.6
    assert checkpoint.tokenizer_source == folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, ml_dtypes.float8_e4m3fn])
def test_dtypes(write_folder, dtype):
    array = np.arange(-8, 8).reshape(2, 8).astype(dtype)
    checkpoint = open_checkpoint(str(write_folder({"x": array, "scalar": np.array(array[0, 0])})))
    assert checkpoint.read("x").dtype == dtype
    np.testing.assert_array_equal(checkpoint.read("x"), array)
    assert checkpoint.read("scalar") == array[0, 0]


def test_consolidated_copy_is_not_read(write_folder, tensors):
    folder = write_folder(tensors)
    save_file(tensors, folder / "consolidated.safetensors")
    assert open_checkpoint(str(folder)).tensors.keys() == tensors.keys()


def test_dummy_needs_only_the_config(write_folder, tensors):
    folder = write_folder(tensors)
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(str(folder), "dummy")
    assert checkpoint.config["hidden_size"] == 64
    with pytest.raises(CheckpointError, match=r"without weights.*model\.norm"):
        checkpoint.read("model.norm.weight")


def read_all(checkpoint) -> None:
    for name in checkpoint.tensors:
        checkpoint.read(name)


def fails(folder: Path, *words: str) -> None:
    """Opening `folder` raises a `CheckpointError` that says all `words`."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    for word in words:
        assert word in str(caught.value)


def edit_header(path: Path, edit) -> None:
    """Rewrites a file's header through `edit`, a function of its text."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = edit(data[8 : 8 + size].decode()).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def test_truncated_file(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    fails(path.parent, "truncated", str(path), "tensor ")


def test_file_that_shrinks_after_opening(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    checkpoint = open_checkpoint(str(path.parent))
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: tensor "):
        read_all(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", struct.pack("<Q", 40) + b"[1"],
)
def test_not_a_safetensors_file(write_folder, tensors, content):
    path = write_folder(tensors) / "model.safetensors"
    path.write_bytes(content)
    fails(path.parent, "truncated, or not a safetensors file", str(path))


def test_corrupt_header(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    edit_header(path, lambda text: text[:-1] + "?")
    fails(path.parent, "corrupt safetensors header", str(path))


def test_wrong_size_of_a_tensor(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    edit_header(path, lambda text: text.replace('"shape":[96,64]', '"shape":[97,64]'))
    fails(path.parent, "corrupt: tensor lm_head.weight BF16[97, 64]", str(path))


def test_unknown_dtype(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    edit_header(path, lambda text: text.replace('"BF16"', '"F4"', 1))
    fails(path.parent, "unsupported dtype F4", str(path), "tensor ")


def test_tensor_twice_in_one_file(write_folder, tensors):
    path = write_folder(tensors) / "model.safetensors"
    edit_header(path, lambda text: text.replace('"model.norm.weight"', '"lm_head.weight"'))
    fails(path.parent, "lm_head.weight appears twice", str(path))


def test_tensor_in_two_shards(write_folder, tensors):
    folder = write_folder(tensors, num_shards=2)
    save_file(tensors, folder / "model-00002-of-00002.safetensors")
    fails(folder, "is also in", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_missing_shard(write_folder, tensors):
    folder = write_folder(tensors, num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, "model-00002-of-00002.safetensors: the file is missing", INDEX)


def test_tensor_missing_from_its_shard(write_folder, tensors):
    folder = write_folder(tensors, num_shards=2)
    path = folder / "model-00001-of-00002.safetensors"
    edit_header(path, lambda text: text.replace('"model.embed_tokens.weight"', '"other"'))
    fails(folder, str(path), "model.embed_tokens.weight is missing")


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {"x": "../x.safetensors"}}', "{"])
def test_bad_index(write_folder, tensors, index):
    folder = write_folder(tensors)
    (folder / INDEX).write_text(index)
    fails(folder, str(folder / INDEX))


@pytest.mark.parametrize(("content", "words"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_bad_config(write_folder, tensors, name, content, words):
    folder = write_folder(tensors)
    (folder / name).write_text(content)
    fails(folder, str(folder / name), words)


def test_missing_config(write_folder, tensors):
    folder = write_folder(tensors)
    (folder / "config.json").unlink()
    fails(folder, str(folder / "config.json"), "missing")


def test_folder_with_pickles_only(write_folder, tensors):
    folder = write_folder(tensors)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fails(folder, "pytorch_model.bin", "pickles")


def test_unknown_tensor_name(write_folder, tensors):
    with pytest.raises(CheckpointError, match="no tensor nonsense"):
        open_checkpoint(str(write_folder(tensors))).read("nonsense")


def test_folder_without_weights(tmp_path):
    """A folder that merely exists is no checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps({}))
    fails(tmp_path, str(tmp_path), "no weights")
