"""Peak host memory of loading, in a process of its own: under 1.3 times the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sgjax.models.convert import convert

WIDTH, FORWARD, VOCAB = 1024, 4096, 8192
LIMIT = 1.3

MEASURE = """
import re, sys
import jax
from sgjax.config import EngineConfig
from sgjax.models.loader import load_model

def memory(field):  # VmHWM, not ru_maxrss, which a child inherits from the process that forked it
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(field + r":\\s+(\\d+) kB", file.read())[1])

# Imports, thread pools: what does not grow with the checkpoint. The small model stays, so that its place is not reused.
small = load_model(EngineConfig(model_path=sys.argv[1]))
before = memory("VmRSS")
model = load_model(EngineConfig(model_path=sys.argv[2]))
peak = memory("VmHWM")
print(peak - before, sum(x.nbytes for x in jax.tree.leaves(model.params)))
"""


def write_model(folder: Path, num_layers: int) -> Path:
    """34 MB in bfloat16 a layer, and 17 for the embedding."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": FORWARD,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(num_layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkvo"}
        shapes |= {f"{layer}.mlp.{x}_proj.weight": (FORWARD, WIDTH) for x in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, FORWARD)
        shapes |= {f"{layer}.{x}_layernorm.weight": (WIDTH,) for x in ("input", "post_attention")}
    save_file(
        {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    """A small one and one of 490 MB."""
    folder = tmp_path_factory.mktemp("memory")
    return write_model(folder / "small", 1), write_model(folder / "large", 14)


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_peak_memory(checkpoints, kind, tmp_path):
    paths = checkpoints
    if kind == "orbax":
        paths = tmp_path / "small", tmp_path / "large"
        for source, target in zip(checkpoints, paths, strict=True):
            convert(str(source), target)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    peak, params = map(int, done.stdout.split())
    assert params > 200e6
    assert peak < LIMIT * params, f"{peak / params:.2f} times the parameters"
