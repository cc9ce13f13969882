"""Folding, checking and placing tensors; dummy weights; memory; meshes (in processes of their own)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sgjax.config import EngineConfig
from sgjax.models.checkpoint import CheckpointError, TensorInfo
from sgjax.models.loader import check_tensors, draw_params, load_model, load_params
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


class MemoryCheckpoint:
    """Random tensors of exactly the declared names and shapes."""

    generation_config: dict = {}  # noqa: RUF012
    config = CONFIG
    tokenizer_source = Path("folder")

    def __init__(self, specs):
        rng = np.random.default_rng(0)
        parts = [part for spec in jax.tree.leaves(specs) for part in spec.parts]
        self.arrays = {p.name: rng.standard_normal(p.checkpoint_shape, np.float32) for p in parts}
        self.tensors = {name: TensorInfo(a.shape, "F32", "a.safetensors") for name, a in self.arrays.items()}
        self.nbytes = sum(a.nbytes for a in self.arrays.values())

    def read(self, name):
        return self.arrays[name]


@pytest.fixture
def specs():
    return declare(build(read_config(CONFIG)))[1]


@pytest.fixture
def checkpoint(specs):
    return MemoryCheckpoint(specs)


def test_query_key_and_value_are_grouped_by_kv_head(specs, checkpoint):
    attn = load_params(specs, checkpoint)["layers"][1]["attn"]
    q, k, v = (checkpoint.arrays[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    wqkv = np.asarray(attn["wqkv"])
    assert wqkv.shape == (2, 5, 4, 24)
    # Query head 4 is the second of KV head 1's three.
    np.testing.assert_array_equal(wqkv[1, 1], q[16:20])
    np.testing.assert_array_equal(wqkv[1, 3], k[4:8])
    np.testing.assert_array_equal(wqkv[0, 4], v[0:4])
    np.testing.assert_array_equal(
        np.asarray(attn["bqkv"])[1, 4], checkpoint.arrays["model.layers.1.self_attn.v_proj.bias"][4:8]
    )


def test_gate_and_up_are_paired(specs, checkpoint):
    w = np.asarray(load_params(specs, checkpoint)["layers"][0]["mlp"]["w_gate_up"])
    np.testing.assert_array_equal(w[:, 0], checkpoint.arrays["model.layers.0.mlp.gate_proj.weight"])
    np.testing.assert_array_equal(w[:, 1], checkpoint.arrays["model.layers.0.mlp.up_proj.weight"])


def test_weights_are_cast(checkpoint):
    specs = declare(build(read_config(CONFIG, "bfloat16")))[1]
    params = load_params(specs, checkpoint)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_progress_ends_at_the_whole(specs, checkpoint):
    calls = []
    load_params(specs, checkpoint, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (checkpoint.nbytes, checkpoint.nbytes)


def test_missing_tensor(specs, checkpoint):
    del checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"folder: tensor model\.layers\.1\.mlp\.up_proj\.weight .* missing"):
        check_tensors(specs, checkpoint)


def test_extra_tensor(specs, checkpoint):
    checkpoint.tensors["model.layers.2.mlp.up_proj.weight"] = TensorInfo((20, 24), "F32", "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor model\.layers\.2\.mlp\.up_proj\.weight"):
        check_tensors(specs, checkpoint)


def test_wrong_shape(specs, checkpoint):
    checkpoint.tensors["model.norm.weight"] = TensorInfo((25,), "F32", "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor model\.norm\.weight .*\(25,\).*\(24,\)"):
        check_tensors(specs, checkpoint)


def test_harmless_extras_are_ignored(specs, checkpoint):
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"):
        checkpoint.tensors[name] = TensorInfo((2,), "F32", "a.safetensors")
    check_tensors(specs, checkpoint)


def test_an_untied_head_must_be_there(checkpoint):
    untied = declare(build(read_config({**CONFIG, "tie_word_embeddings": False})))[1]
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        check_tensors(untied, checkpoint)


def test_dummy_weights_are_random_of_the_real_shapes_and_reproducible(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")

    def load(seed):
        config = EngineConfig(model_path=str(tmp_path), load_format="dummy", random_seed=seed)
        return jax.tree.map(np.asarray, load_model(config).params)

    first, again, other = load(0), load(0), load(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["embed"], other["embed"])
    assert not np.array_equal(first["layers"][0]["mlp"]["w_down"], first["layers"][1]["mlp"]["w_down"])
    assert first["layers"][0]["attn"]["wqkv"].std() == pytest.approx(24**-0.5, rel=0.1)
    np.testing.assert_array_equal(first["norm"], np.ones(24))


def test_dummy_weights_have_the_declared_shapes(specs):
    params = draw_params(specs, 0)
    shapes = jax.tree.map(lambda array: (array.shape, array.dtype.name), params)
    assert shapes == jax.tree.map(lambda spec: (spec.shape, spec.dtype), specs)


def run_python(code: str, *args: str) -> str:
    """In a fresh process: device counts are fixed, and peak memory is counted, per process."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, here, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


TWO_DEVICES = """
import re, sys, jax, numpy as np
sys.path.insert(0, sys.argv[1])
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import NamedSharding, PartitionSpec
from conftest import GOLDEN, Driver, _forward
from sgjax.config import EngineConfig
from sgjax.kernels import resolve
from sgjax.layers.batch import ForwardBatch
from sgjax.models.errors import ModelError
from sgjax.models.loader import load_model

mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
model = load_model(EngineConfig(model_path=str(GOLDEN / "llama3"), dtype="float32"), mesh)
attn, mlp = model.params["layers"][0]["attn"], model.params["layers"][0]["mlp"]
assert attn["wqkv"].addressable_shards[0].data.shape == (1, 5, 8, 48), attn["wqkv"].sharding
assert mlp["w_down"].addressable_shards[0].data.shape == (48, 40), mlp["w_down"].sharding

expected = np.load(GOLDEN / "llama3" / "expected.npz")
driver = Driver(model, 2, 72)
# The portable kernels gather caches that are divided by head: what is counted here is the model's communication.
driver.ops = resolve("*=reference", "cpu")
driver.cache = jax.device_put(driver.cache, NamedSharding(mesh, PartitionSpec("tensor")))
driver.feed(list(expected["token_ids"][:, :64]))
for i in range(64, 72):
    driver.feed(list(expected["token_ids"][:, i : i + 1]), decode=True)
np.testing.assert_allclose(np.array(driver.log_probs), expected["logprobs"], atol=1e-4, rtol=0)

i32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
batch = ForwardBatch(i32(8), i32(8), i32(8), i32(9), i32(8), i32(8, 2), i32(8), decode=True)
step = _forward.lower(model.params, batch, driver.cache, graphdef=model.graphdef, ops=driver.ops).compile().as_text()
collectives = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\\(", step)
# Two a layer; one more after the lookup in the embedding, whose vocabulary is divided.
assert collectives == ["all-reduce"] * (2 * 3 + 1), collectives

one = load_model(EngineConfig(model_path=str(GOLDEN / "llama3"), load_format="dummy", dtype="float32"))
two = load_model(EngineConfig(model_path=str(GOLDEN / "llama3"), load_format="dummy", dtype="float32"), mesh)
assert two.params["embed"].addressable_shards[0].data.shape == (64, 48)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.params, two.params)

try:
    load_model(EngineConfig(model_path=str(GOLDEN / "smollm2")), mesh)
except ModelError as error:
    assert "kv_heads = 3" in str(error)
else:
    raise AssertionError("three KV heads over two devices")
"""


def test_sharded_over_two_devices():
    run_python(TWO_DEVICES)
