from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sgjax.config import EngineConfig
from sgjax.models.checkpoint import CheckpointError, OrbaxFolder, open_checkpoint
from sgjax.models.convert import convert
from sgjax.models.errors import ModelError
from sgjax.models.loader import load_model


@pytest.fixture
def source(write_folder, tensors) -> Path:
    folder = write_folder(tensors, num_shards=2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def converted(source, tmp_path) -> Path:
    convert(str(source), tmp_path / "converted")
    return tmp_path / "converted"


def load(folder: Path, **settings):
    return load_model(EngineConfig(model_path=str(folder), **settings))


def assert_same_params(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_round_trip(source, converted):
    checkpoint = open_checkpoint(str(converted))
    assert isinstance(checkpoint, OrbaxFolder)
    assert checkpoint.tensors["layers/1/attn/wo"].shape == (64, 2, 2, 16)
    assert checkpoint.nbytes == open_checkpoint(str(source)).nbytes
    original, restored = load(source), load(converted)
    assert_same_params(original.params, restored.params)
    assert restored.config == original.config
    assert restored.generation == original.generation
    assert restored.tokenizer_source == converted
    assert sorted(path.name for path in converted.iterdir() if path.suffix in (".json", ".jinja")) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "sgjax_checkpoint.json",
        "tokenizer.json",
    ]


def test_dtype(source, converted, tmp_path):
    """Chosen when converting, or when loading."""
    convert(str(source), tmp_path / "float32", dtype="float32")
    expected = load(source, dtype="float32")
    assert json.loads((tmp_path / "float32" / "config.json").read_text())["dtype"] == "float32"
    assert_same_params(load(tmp_path / "float32").params, expected.params)
    assert_same_params(load(converted, dtype="float32").params, expected.params)


def test_the_embedded_model(embedded_model_path, tmp_path):
    """The tokenizer of a GGUF file goes with it."""
    from sgjax.text import load_tokenizer

    convert("embedded", tmp_path / "smollm2")
    restored, original = load(tmp_path / "smollm2"), load(embedded_model_path)
    assert_same_params(restored.params, original.params)
    assert restored.eos_token_ids == original.eos_token_ids
    a, b = load_tokenizer(restored.tokenizer_source), load_tokenizer(original.tokenizer_source)
    assert a.encode("Hello  1 world") == b.encode("Hello  1 world")
    assert a.chat_template == b.chat_template


def test_progress(source, converted, tmp_path):
    done = []
    load_model(EngineConfig(model_path=str(converted)), progress=lambda *state: done.append(state))
    assert done[-1][0] == done[-1][1] > 0


SHARDED = """
import sys, jax, numpy as np
from sgjax.config import EngineConfig
from sgjax.models.loader import load_model
mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
models = [load_model(EngineConfig(model_path=path), mesh) for path in sys.argv[1:]]
for x, y in zip(*(jax.tree.leaves(model.params) for model in models), strict=True):
    assert x.sharding == y.sharding
    assert len(x.addressable_shards) == 2
    for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
wo = models[0].params["layers"][0]["attn"]["wo"]
assert wo.addressable_shards[0].data.shape == (64, 1, 2, 16), wo.sharding
"""


def test_restores_onto_two_devices(source, converted, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    subprocess.run([sys.executable, "-c", SHARDED, str(converted), str(source)], check=True, timeout=120)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "parameter layers/2/.* is missing"),
        ({"num_hidden_layers": 1}, "parameter layers/1/.* has no place in this architecture"),
        ({"vocab_size": 128}, r"parameter embed has shape \(96, 64\), expected \(128, 64\)"),
        ({"tie_word_embeddings": True}, "parameter head has no place"),
    ],
)
def test_config_that_does_not_match(converted, changes, words):
    edit_json(converted / "config.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        load(converted)


def test_other_layout(converted):
    edit_json(converted / "sgjax_checkpoint.json", layout=0)
    with pytest.raises(CheckpointError, match="layout 0 is not 1; convert it again"):
        load(converted)


def largest_file(converted: Path) -> Path:
    return max((converted / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def test_missing_file(converted):
    path = largest_file(converted)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path}: the file is missing"):
        load(converted)


def test_truncated_file(converted):
    path = largest_file(converted)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{path}: truncated or changed: 1000 bytes, expected "):
        load(converted)


def test_damaged_metadata(converted):
    path = converted / "params" / "_METADATA"
    path.write_bytes(b"{" * path.stat().st_size)
    with pytest.raises(CheckpointError, match="params: not a readable Orbax checkpoint"):
        load(converted)


@pytest.fixture
def collect_garbage():
    """Collects the coroutines that Orbax leaves behind when it fails, while the test's warnings are ignored."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_manifest(converted, collect_garbage):
    path = converted / "params" / "manifest.ocdbt"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"params: (not a readable Orbax checkpoint|cannot be restored): ."):
        load(converted)


def test_never_overwrites(source, converted):
    before = (converted / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(str(source), converted)
    assert (converted / "config.json").read_bytes() == before


def test_failure_leaves_nothing(source, tmp_path):
    (source / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        convert(str(source), tmp_path / "out")
    edit_json(source / "config.json", architectures=["Unknown"])
    with pytest.raises((CheckpointError, ModelError)):
        convert(str(source), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_converting_twice_is_refused(converted, tmp_path):
    with pytest.raises(CheckpointError, match="is an Orbax checkpoint already"):
        convert(str(converted), tmp_path / "again")
