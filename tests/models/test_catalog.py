"""What `sgjax models list`, `pull` and `inspect` are made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sgjax.models.catalog import inspect, list_models, pull
from sgjax.models.checkpoint import CheckpointError

GOLDEN = Path(__file__).parent.parent / "golden" / "models"


def test_inspect_the_embedded_model(embedded_model_path):
    found = inspect("embedded")
    assert (found.path, found.format, found.architecture) == (embedded_model_path, "gguf", "LlamaForCausalLM")
    assert found.num_params == 134_515_008
    assert found.context_length == 8192
    assert found.dtypes == {"Q8_0": (1, 28311552), "F32": (61, 35136), "Q4_1": (210, 106168320)}
    assert found.tokenizer == embedded_model_path
    assert found.problem is None


def test_inspect_a_folder():
    folder = sorted(GOLDEN.iterdir())[0]
    found = inspect(str(folder))
    assert (found.path, found.format, found.problem) == (folder, "safetensors", None)
    assert found.num_params == sum(np.prod(info.shape) for info in found.tensors.values())
    assert found.tokenizer is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "unknown architecture"),
        ({"num_hidden_layers": 1}, "has no place in this architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_inspect_says_why_a_model_cannot_be_served(tmp_path, changes, problem):
    golden = sorted(GOLDEN.iterdir())[0]
    config = json.loads((golden / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((golden / "model.safetensors").read_bytes())
    assert problem in inspect(str(tmp_path)).problem


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache with a safetensors model at `main`, a GGUF file at another revision, and a data set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def add(kind: str, repo: str, commit: str, ref: str | None, names: list[str]) -> None:
        folder = tmp_path / f"{kind}--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "blobs").mkdir(exist_ok=True)
        for name in names:
            blob = folder / "blobs" / f"{commit}{name}"
            if name.endswith(".safetensors"):
                save_file({"x": np.ones(3, np.float32)}, blob)
            else:
                blob.write_text("{}")
            (snapshot / name).symlink_to(blob)
        if ref:
            (folder / "refs").mkdir()
            (folder / "refs" / ref).write_text(commit)

    add("models", "org/plain", "a" * 40, "main", ["config.json", "model.safetensors"])
    add("models", "org/quantised", "b" * 40, None, ["q4.gguf"])
    add("models", "org/tokenizer-only", "c" * 40, "main", ["tokenizer.json"])
    add("datasets", "org/data", "d" * 40, "main", ["config.json", "data.safetensors"])
    return tmp_path


def test_list_models(hub_cache, embedded_model_path):
    models = list_models()
    assert [model.model_path for model in models] == [
        "embedded",
        "org/plain",
        f"org/quantised/q4.gguf@{'b' * 40}",
    ]
    assert models[0].size_bytes == 98_362_432
    assert models[1].path == hub_cache / "models--org--plain" / "snapshots" / ("a" * 40)


def test_list_models_with_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SGJAX_CACHE", str(tmp_path / "sgjax"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert list_models() == []


def test_pull_checks_what_it_pulled(tmp_path, embedded_model_path):
    assert pull("embedded") == embedded_model_path
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="truncated"):
        pull(str(tmp_path))
