"""Fixtures of the text tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgjax.text import Tokenizer, load_tokenizer

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def smollm2(embedded_model_path: Path) -> Tokenizer:
    """Byte-level BPE, from a GGUF file."""
    return load_tokenizer(embedded_model_path)


@pytest.fixture(scope="session")
def tiny_bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Sentencepiece BPE with byte fallback, from a folder with only a tokenizer.model."""
    folder = tmp_path_factory.mktemp("tiny_bpe")
    (folder / "tokenizer.model").write_bytes((DATA / "tiny_bpe.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "add_bos_token": true}'
    )
    return load_tokenizer(folder)
