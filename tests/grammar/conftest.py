"""Fixtures of the grammar tests: the embedded model's tokenizer, without its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.grammar_suite import Feeder
from sgjax.grammar import Grammar, GrammarCompiler, Matcher
from sgjax.sampling_params import GrammarSpec
from sgjax.text import Tokenizer, load_tokenizer

VOCAB_SIZE = 49_280  # wider than the tokenizer's 49,152, and no multiple of it
OTHER_EOS = 0

Compile = Callable[[str, Any], Grammar]


@pytest.fixture(scope="session")
def tokenizer(embedded_model_path: Path) -> Tokenizer:
    return load_tokenizer(embedded_model_path)


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    """Shared by all tests that need no compiler of their own. Two ids end an output."""
    compiler = GrammarCompiler(
        tokenizer.to_json(), vocab_size=VOCAB_SIZE, eos_token_ids=[*tokenizer.eos_token_ids, OTHER_EOS], cache_size=1000
    )
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def compile_(compiler: GrammarCompiler) -> Compile:
    """Compiles a grammar of a kind, given as text or as what JSON writes."""

    def compile_now(kind: Any, value: Any) -> Grammar:
        text = value if isinstance(value, str) else json.dumps(value)
        return compiler.compile(GrammarSpec(kind, text)).result(60)

    return compile_now


@pytest.fixture(scope="session")
def feeder(tokenizer: Tokenizer) -> Feeder:
    return Feeder(tokenizer, VOCAB_SIZE)


def allowed(matcher: Matcher) -> list[int]:
    """The ids that a matcher's mask allows."""
    mask = np.full(-(-VOCAB_SIZE // 32), -1, np.int32)
    matcher.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
