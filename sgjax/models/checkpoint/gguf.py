"""GGUF files of llama.cpp: their metadata as a Hugging Face config, their tensors under Hugging Face names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from sgjax.gguf_container import GGUFContainer, GGUFError, read_container
from sgjax.layers.rotary import Llama3, Rope
from sgjax.models.checkpoint.base import CheckpointError, TensorInfo
from sgjax.models.checkpoint.dequantize import dequantize
from sgjax.models.checkpoint.safetensors import read_bytes

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""llama.cpp's name to Hugging Face's. Mistral's files call themselves llama, and do not state a window."""

_ROPE_FACTORS = "rope_freqs.weight"
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PLAIN: dict[GGMLQuantizationType, Any] = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
    GGMLQuantizationType.BF16: ml_dtypes.bfloat16,
}


class GGUFFile:
    """One GGUF file. Quantised tensors are dequantised to float32 when read, and only then.

    Raises:
      CheckpointError: the file is corrupt or truncated, or of an architecture that is not supported.
    """

    def __init__(self, path: Path):
        self.tokenizer_source = path
        try:
            container = read_container(path)
        except GGUFError as error:
            raise CheckpointError(str(error)) from error
        self._stored = _stored_tensors(container)
        self.config = read_config(container, self._rope_factors())
        self.generation_config = _generation_config(container.metadata)
        self._sources = {_hf_name(path, name): name for name in self._stored if name != _ROPE_FACTORS}
        self.tensors: Mapping[str, TensorInfo] = {
            hf_name: TensorInfo(self._stored[name].shape, self._stored[name].type.name, str(path))
            for hf_name, name in self._sources.items()
        }
        self.nbytes = sum(tensor.nbytes for tensor in self._stored.values())

    def read(self, name: str) -> np.ndarray:
        if name not in self._sources:
            raise CheckpointError(f"{self.tokenizer_source}: there is no tensor {name}")
        source = self._sources[name]
        return _read_tensor(self.tokenizer_source, source, self._stored[source], self._num_rotary_heads(name))

    def _rope_factors(self) -> np.ndarray | None:
        stored = self._stored.get(_ROPE_FACTORS)
        return None if stored is None else _read_tensor(self.tokenizer_source, _ROPE_FACTORS, stored)

    def _num_rotary_heads(self, name: str) -> int | None:
        """The heads of a projection whose rows llama.cpp reorders for its interleaved rotary embedding."""
        match = re.search(r"self_attn\.([qk])_proj\.", name)
        if match is None or self.config["model_type"] != "llama":
            return None
        return self.config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


def _stored_tensors(container: GGUFContainer) -> dict[str, _Stored]:
    """The tensors of a file, each of a known type and wholly inside it."""
    path, file_bytes, stored = container.path, container.path.stat().st_size, {}
    for name, (shape, type_id, offset) in container.tensors.items():
        try:
            type_ = GGMLQuantizationType(type_id)
            block_len, block_bytes = GGML_QUANT_SIZES[type_]
        except (ValueError, KeyError):
            raise CheckpointError(f"{path}: tensor {name} has the unknown quantisation type {type_id}") from None
        if shape and shape[-1] % block_len:
            raise CheckpointError(
                f"{path}: corrupt: tensor {name} has rows of {shape[-1]}, no multiple of {type_.name}'s {block_len}"
            )
        nbytes = math.prod(shape) // block_len * block_bytes
        if offset + nbytes > file_bytes:
            raise CheckpointError(
                f"{path}: truncated: tensor {name} ends at byte {offset + nbytes}, the file at {file_bytes}"
            )
        stored[name] = _Stored(shape, type_, offset, nbytes)
    return stored


def _read_tensor(path: Path, name: str, tensor: _Stored, num_rotary_heads: int | None = None) -> np.ndarray:
    raw = read_bytes(path, tensor.offset, tensor.nbytes, name)
    if num_rotary_heads is not None:
        raw = _restore_rows(raw.reshape(tensor.shape[0], -1), num_rotary_heads)
    if tensor.type in _PLAIN:
        return raw.reshape(-1).view(_PLAIN[tensor.type]).reshape(tensor.shape)
    try:
        return dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.type).reshape(tensor.shape)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path}: tensor {name} has the unsupported quantisation type {tensor.type.name}"
        ) from error


def _restore_rows(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from (H/2, 2), rotary pairs side by side, to Hugging Face's (2, H/2). Blocks lie within a row,
    so that this is right for quantised rows too."""
    paired = rows.reshape(num_heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _hf_name(path: Path, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if kind in ("weight", "bias"):
        if stem in _NAMES:
            return f"{_NAMES[stem]}.{kind}"
        if layer and layer[2] in _LAYER_NAMES:
            return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{kind}"
    raise CheckpointError(f"{path}: tensor {name} has no place in the architectures {', '.join(ARCHITECTURES)}")


def read_config(container: GGUFContainer, rope_factors: np.ndarray | None = None) -> dict[str, Any]:
    """What the model's `config.json` says, from GGUF metadata.

    Args:
      rope_factors: what each rotary frequency is divided by, (H/2,), when the file has a tensor of them.

    Raises:
      CheckpointError: a key is missing, or says something that sgjax does not do.
    """
    path, metadata, tensors = container
    _refuse_unsupported(container)
    model_type = metadata["general.architecture"]

    def fact(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{model_type}.{key}", default)
        if value is None:
            raise CheckpointError(f"{path}: the metadata has no {model_type}.{key}")
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise CheckpointError(f"{path}: {model_type}.{key} differs between layers, which is not supported")
        return value

    hidden_size, num_heads = fact("embedding_length"), fact("attention.head_count")
    head_dim = fact("attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if fact(key, head_dim) != head_dim:
            raise CheckpointError(f"{path}: {model_type}.{key} is {fact(key)}, expected the head size {head_dim}")
    context_length = fact("context_length")
    config = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": fact("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": context_length,
        "rope_theta": fact("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(path, fact, rope_factors, head_dim),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        # Quantised weights have no dtype of their own.
        "dtype": "bfloat16",
    }
    for kind in ("bos", "eos"):
        config[f"{kind}_token_id"] = metadata.get(f"tokenizer.ggml.{kind}_token_id")
    return config


def _refuse_unsupported(container: GGUFContainer) -> None:
    path, metadata, tensors = container
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: GGUF architecture {architecture!r} is not supported: {', '.join(ARCHITECTURES)} are"
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise CheckpointError(f"{path}: a mixture of experts, which is not supported")
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{path}: one of {metadata['split.count']} parts of a model; join them with llama-gguf-split --merge"
        )
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: tensor token_embd.weight is missing")


def _rope_scaling(path: Path, fact: Any, rope_factors: np.ndarray | None, head_dim: int) -> dict[str, Any] | None:
    if rope_factors is not None:
        if rope_factors.shape != (head_dim // 2,):
            raise CheckpointError(f"{path}: tensor {_ROPE_FACTORS} has shape {rope_factors.shape}")
        return _llama3_scaling(path, rope_factors, float(fact("rope.freq_base", 10000.0)))
    # Old files state a linear scaling's inverse under a key of its own.
    factor = float(fact("rope.scaling.factor", fact("rope.scale_linear", 1.0)))
    kind = fact("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind == "none" or factor == 1.0:
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"{path}: rope scaling {kind!r} is not supported")
    # The stated context length includes a linear scaling, but not YaRN's (as in llama.cpp).
    stated = fact("context_length") / (factor if kind == "linear" else 1.0)
    original = int(fact("rope.scaling.original_context_length", stated))
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def _llama3_scaling(path: Path, stored: np.ndarray, theta: float) -> dict[str, Any] | None:
    """Llama 3.1's rope scaling, which a GGUF file holds only as the factor of each frequency.

    The factors are those of `{"rope_type": "llama3", ...}` with the constants of every published model, or refused:
    a file with other factors would be served with wrong positions.
    """
    if np.all(stored == 1.0):
        return None
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    head_dim = 2 * stored.size
    scaled = Rope(head_dim, theta, Llama3(scaling["factor"], 1.0, 4.0, 8192))
    expected = Rope(head_dim, theta).frequencies() / scaled.frequencies()
    if not np.allclose(stored, expected, rtol=1e-4):
        raise CheckpointError(f"{path}: tensor {_ROPE_FACTORS} does not hold Llama 3.1's rope scaling")
    return scaling


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids and, in newer files, the sampling that the model's authors recommend."""
    ids = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "eot", "eom", "padding")}
    ends = [ids[kind] for kind in ("eos", "eot", "eom") if ids[kind] is not None]
    values = {"bos_token_id": ids["bos"], "eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": ids["padding"]}
    for ours, theirs in {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}.items():
        values[ours] = metadata.get(f"general.sampling.{theirs}")
    return {name: value for name, value in values.items() if value is not None and value != []}
