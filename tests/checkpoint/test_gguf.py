from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from gguf import GGUFWriter

from sgjax.gguf_container import read_container
from sgjax.models.checkpoint import CheckpointError, open_checkpoint
from sgjax.models.checkpoint.dequantize import dequantize

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
METADATA = {
    "block_count": 2,
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
# Types that the gguf package can quantise; the K types it can only dequantise.
QUANTISED = [Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.Q8_0]
K_TYPES = [Quant.Q2_K, Quant.Q3_K, Quant.Q4_K, Quant.Q5_K, Quant.Q6_K]


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.{kind}" if layer else f"{NAMES[stem]}.{kind}"


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k, for rotary pairs that lie side by side."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def write_gguf(tmp_path: Path, tensors) -> Callable[..., Path]:
    def write(
        quant: Quant = Quant.F32,
        architecture: str = "llama",
        metadata: dict[str, Any] | None = None,
        extra: dict[str, np.ndarray] | None = None,
        leave_out: tuple[str, ...] = (),
    ) -> Path:
        path = tmp_path / "model.gguf"
        writer = GGUFWriter(path, architecture)
        facts = {f"{architecture}.{key}": value for key, value in METADATA.items()} | (metadata or {})
        for key, value in facts.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif value is not None:
                writer.add_uint32(key, value)
        stored = {gguf_name(name): array.astype(np.float32) for name, array in tensors.items() if name not in leave_out}
        for name, array in (stored | (extra or {})).items():
            if architecture == "llama" and re.search(r"attn_[qk]\.", name):
                array = permute(array, 4 if "attn_q" in name else 2)
            if array.ndim == 1 or quant == Quant.F32:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, gguf.quants.quantize(array, quant), raw_dtype=quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.mark.parametrize("quant", [Quant.F32, Quant.F16, Quant.BF16, *QUANTISED], ids=lambda quant: quant.name)
def test_round_trip(write_gguf, tensors, quant):
    """Each tensor is what the gguf package makes of it, with the rows of q and k as Hugging Face has them."""
    checkpoint = open_checkpoint(str(write_gguf(quant)))
    assert checkpoint.tensors.keys() == tensors.keys()
    dtypes = {Quant.F16: np.float16, Quant.BF16: ml_dtypes.bfloat16}
    for name, original in tensors.items():
        expected = original.astype(np.float32)
        if expected.ndim == 2 and quant != Quant.F32:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quant), quant)
        array = checkpoint.read(name)
        assert checkpoint.tensors[name].shape == array.shape == original.shape
        assert checkpoint.tensors[name].dtype == ("F32" if original.ndim == 1 else quant.name)
        assert array.dtype == (np.float32 if original.ndim == 1 else dtypes.get(quant, np.float32))
        np.testing.assert_array_equal(array.astype(np.float32), expected.reshape(original.shape))


@pytest.mark.parametrize("quant", K_TYPES, ids=lambda quant: quant.name)
def test_k_types(tmp_path, quant):
    """Random blocks, since the gguf package cannot make K types."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    assert block_len == 256
    raw = np.random.default_rng(0).integers(0, 50, (8, 2 * block_bytes), np.uint8)
    writer = GGUFWriter(tmp_path / "k.gguf", "llama")
    for key, value in METADATA.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=quant)
    writer.add_tensor("blk.0.attn_q.weight", permute(raw, 4), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(tmp_path / "k.gguf"))
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert checkpoint.tensors[name].shape == (8, 512)
        np.testing.assert_array_equal(checkpoint.read(name), gguf.quants.dequantize(raw, quant))


def test_reads_many_blocks_like_the_gguf_package():
    """The written-out types, over several chunks and extreme values."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((257, 1024), np.float32) * 10.0 ** rng.integers(-6, 4, (257, 1))
    for quant in (Quant.Q4_0, Quant.Q4_1, Quant.Q8_0):
        raw = gguf.quants.quantize(values.astype(np.float32), quant)
        np.testing.assert_array_equal(dequantize(raw, quant), gguf.quants.dequantize(raw, quant))


def test_config(write_gguf):
    path = write_gguf(
        metadata={
            "llama.rope.freq_base": 500000.0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.eot_token_id": 7,
            "general.sampling.temp": 0.5,
        }
    )
    checkpoint = open_checkpoint(str(path))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "eos_token_id": 2,
    }
    assert expected.items() <= checkpoint.config.items()
    assert checkpoint.config["rms_norm_eps"] == pytest.approx(1e-5)
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 7], "temperature": 0.5}
    assert checkpoint.tokenizer_source == path


def test_tied_embeddings(write_gguf):
    assert open_checkpoint(str(write_gguf(leave_out=("lm_head.weight",)))).config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("architecture", "hf", "extra"),
    [
        ("qwen2", "Qwen2ForCausalLM", {"blk.0.attn_q.bias": (64,), "blk.1.attn_v.bias": (32,)}),
        ("qwen3", "Qwen3ForCausalLM", {"blk.0.attn_q_norm.weight": (16,), "blk.1.attn_k_norm.weight": (16,)}),
    ],
)
def test_qwen(write_gguf, tensors, architecture, hf, extra):
    """Qwen's rows are not permuted, and its biases and q/k norms have their places."""
    extra = {name: np.random.default_rng(1).standard_normal(shape, np.float32) for name, shape in extra.items()}
    path = write_gguf(Quant.F16, architecture, {f"{architecture}.attention.key_length": 16}, extra)
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.config["architectures"] == [hf]
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name].astype(np.float16))
    names = {gguf_name(name): name for name in checkpoint.tensors}
    for name, array in extra.items():
        np.testing.assert_array_equal(checkpoint.read(names[name]), array)


def test_llama_bias_is_permuted_too(write_gguf):
    bias = np.arange(64, dtype=np.float32)
    checkpoint = open_checkpoint(str(write_gguf(extra={"blk.0.attn_q.bias": bias})))
    assert checkpoint.config["attention_bias"] is True
    np.testing.assert_array_equal(checkpoint.read("model.layers.0.self_attn.q_proj.bias"), bias)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_recognised(write_gguf, factor):
    """From factors computed as llama.cpp's converter does, one frequency at a time."""
    factors = []
    for i in range(0, 16, 2):
        wavelength = 2 * math.pi * 500000.0 ** (i / 16)
        smooth = (8192 / wavelength - 1) / 3
        blend = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < 8192 / 4 else factor if wavelength > 8192 else blend)
    extra = {"rope_freqs.weight": np.array(factors, np.float32)}
    checkpoint = open_checkpoint(str(write_gguf(metadata={"llama.rope.freq_base": 500000.0}, extra=extra)))
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_other_rope_factors_are_refused(write_gguf):
    factors = np.linspace(1, 4, 8, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight does not hold Llama 3\.1's"):
        open_checkpoint(str(write_gguf(extra={"rope_freqs.weight": factors})))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, ("linear", 4.0, 64)),
        ({"scale_linear": 2.0}, ("linear", 2.0, 128)),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 128},
            ("yarn", 4.0, 128),
        ),
    ],
)
def test_rope_scaling(write_gguf, metadata, expected):
    path = write_gguf(metadata={f"llama.rope.{key}": value for key, value in metadata.items()})
    scaling = open_checkpoint(str(path)).config["rope_scaling"]
    assert (tuple(scaling.values()) if scaling else None) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is not supported"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"split.count": 2}}, "one of 2 parts"),
        ({"metadata": {"llama.block_count": None}}, "no llama.block_count"),
        ({"metadata": {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}}, "'longrope'"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "rope.dimension_count is 8, expected the head size 16"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "head_count_kv differs between layers"),
        ({"extra": {"blk.0.ssm_a.weight": np.ones(4, np.float32)}}, "blk.0.ssm_a.weight has no place"),
        ({"leave_out": ("model.embed_tokens.weight",)}, "token_embd.weight is missing"),
    ],
)
def test_refused(write_gguf, settings, words):
    path = write_gguf(**settings)
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        open_checkpoint(str(path))
    assert str(path) in str(caught.value)


def test_header_equals_the_gguf_package(embedded_model_path, write_gguf):
    for path in (embedded_model_path, write_gguf(Quant.Q4_0, metadata={"é": "ü", "f": 0.5, "list": [1, 2, 3]})):
        container, reader = read_container(path), gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert container.metadata == fields
        assert container.tensors == {
            t.name: (tuple(map(int, t.shape[::-1])), t.tensor_type, t.data_offset) for t in reader.tensors
        }


def test_truncated_at_any_byte(write_gguf):
    """Header or data: opening a cut file is one clear error, whatever was cut."""
    path = write_gguf(Quant.Q8_0)
    data = path.read_bytes()
    for size in [*range(0, 2000, 37), *range(2000, len(data), 9973), len(data) - 33]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            open_checkpoint(str(path))


def test_not_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(str(path))
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(100))
    with pytest.raises(CheckpointError, match="little-endian"):
        open_checkpoint(str(path))


def test_unknown_quantisation_type(write_gguf):
    path = write_gguf()
    data = path.read_bytes()
    name = b"blk.0.attn_v.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8  # the type follows the count of dimensions, and two of them
    path.write_bytes(data[:place] + (250).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.attn_v\.weight has the unknown quantisation type 250"):
        open_checkpoint(str(path))


def test_type_that_cannot_be_dequantised(write_gguf):
    path = write_gguf()
    data = path.read_bytes()
    name = b"blk.0.attn_v.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(data[:place] + Quant.I32.to_bytes(4, "little") + data[place + 4 :])
    checkpoint = open_checkpoint(str(path))
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_v\.weight has the unsupported quantisation type I32"):
        checkpoint.read("model.layers.0.self_attn.v_proj.weight")


def test_folder_with_gguf_files(write_gguf):
    path = write_gguf()
    assert open_checkpoint(str(path.parent)).tokenizer_source == path
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"several GGUF files.*model\.gguf, other\.gguf"):
        open_checkpoint(str(path.parent))


def test_wrong_load_format(write_gguf):
    with pytest.raises(CheckpointError, match="holds gguf weights, not safetensors"):
        open_checkpoint(str(write_gguf()), "safetensors")


def test_the_embedded_model(embedded_model_path):
    checkpoint = open_checkpoint(str(embedded_model_path))
    assert len(checkpoint.tensors) == 272
    assert checkpoint.config["rope_theta"] == 100000.0
    assert checkpoint.config["tie_word_embeddings"] is True
    # From the gguf package, with the rows of each of the 3 heads put back from (32, 2) to (2, 32).
    stored = next(t for t in gguf.GGUFReader(embedded_model_path).tensors if t.name == "blk.7.attn_k.weight")
    paired = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(3, 32, 2, 576)
    expected = paired.swapaxes(1, 2).reshape(192, 576)
    np.testing.assert_array_equal(checkpoint.read("model.layers.7.self_attn.k_proj.weight"), expected)
