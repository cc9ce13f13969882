"""A tiny random model with the embedded model's tokenizer: real steps, compiled in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import sgjax
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}


def write_checkpoint(folder: Path, seed: int) -> str:
    """A folder with random tensors of the tiny model's shapes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    _, specs = declare(build(read_config(TINY, "auto")))
    rng = np.random.default_rng(seed)
    parts = [part for spec in jax.tree.leaves(specs) for part in spec.parts]
    tensors = {part.name: rng.normal(0, 0.3, part.checkpoint_shape).astype(np.float32) for part in parts}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_model: Path, embedded_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return {
        "model_path": str(tiny_model),
        "tokenizer_path": str(embedded_model_path),
        "load_format": "dummy",
        "max_running_requests": 8,
        "max_total_tokens": 4096,
        "chunked_prefill_size": 128,
        "skip_warmup": True,
        "compile_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    }


@pytest.fixture
def make_engine(tiny_settings: dict) -> Iterator[Callable[..., sgjax.Engine]]:
    """Makes tiny engines that are checked for leaks and closed when the test ends."""
    engines: list[sgjax.Engine] = []

    def make(**settings: Any) -> sgjax.Engine:
        engines.append(sgjax.Engine(**{**tiny_settings, **settings}))
        return engines[-1]

    yield make
    for engine in engines:
        if engine.is_alive:
            engine.check()
        engine.close()


@pytest.fixture(scope="module")
def engine(tiny_settings: dict) -> Iterator[sgjax.Engine]:
    """One engine for a module's tests that need no settings of their own."""
    with sgjax.Engine(**tiny_settings) as engine:
        yield engine
        engine.check()
