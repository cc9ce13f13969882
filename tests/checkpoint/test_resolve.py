from __future__ import annotations

import fnmatch

import huggingface_hub
import pytest

from sgjax.models.checkpoint import CheckpointError, open_checkpoint, resolve


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has everything; returns the calls."""
    calls = []

    def snapshot_download(repo, **kwargs):
        calls.append({"repo": repo, **kwargs})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


def fetched(call, name: str) -> bool:
    allowed = any(fnmatch.fnmatch(name, pattern) for pattern in call["allow_patterns"])
    return allowed and not any(fnmatch.fnmatch(name, pattern) for pattern in call["ignore_patterns"])


def test_local_paths(tmp_path, monkeypatch, embedded_model_path):
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve("embedded") == embedded_model_path
    assert resolve(str(embedded_model_path)) == embedded_model_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert resolve("~/m") == tmp_path / "m"


def test_hub_id(hub, tmp_path):
    assert resolve("org/some-model_1.5") == tmp_path
    (call,) = hub
    assert call["repo"] == "org/some-model_1.5"
    assert call["revision"] is None
    assert call["local_files_only"] is False
    needed = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
    for name in (*needed, "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        assert fetched(call, name), name
    for name in ("pytorch_model.bin", "model.gguf", "consolidated.safetensors", "original/params.json", "README.md"):
        assert not fetched(call, name), name


def test_hub_id_without_weights(hub):
    resolve("org/model", with_weights=False)
    assert fetched(hub[0], "config.json")
    assert not fetched(hub[0], "model.safetensors")


def test_revision_and_file(hub, tmp_path):
    assert resolve("org/model-GGUF/q4.gguf@v1.0") == tmp_path / "q4.gguf"
    (call,) = hub
    assert (call["repo"], call["revision"]) == ("org/model-GGUF", "v1.0")
    assert fetched(call, "q4.gguf")
    assert not fetched(call, "q8.gguf")
    assert not fetched(call, "model.safetensors")


def test_offline_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"^org/absent: no such folder.*HF_HUB_OFFLINE is set"):
        open_checkpoint("org/absent")


def test_hub_failure_says_what_was_tried(monkeypatch):
    def snapshot_download(repo, **kwargs):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"not in the hub cache .*, and asking the hub failed: no route to host$"):
        resolve("org/model")


@pytest.mark.parametrize("name", ["nonsense", "/no/such/folder", "./org/name", "../name", "a/b/c", "org/", "a b/c", ""])
def test_nothing_there(hub, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"accepted are a folder.*\.gguf file.*'embedded'.*hub id"):
        resolve(name)
    assert not hub


def test_other_file(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a file, but not a \.gguf one"):
        resolve(str(tmp_path / "model.bin"))
