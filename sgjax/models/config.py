"""Facts of an architecture, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sgjax.layers.rotary import Linear, Llama3, Rope, Yarn
from sgjax.models.errors import ModelError
from sgjax.types import KVSpec

DTYPES = ("bfloat16", "float16", "float32")

HFConfig = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder's sizes and features. Hashable: part of the static graph that a jitted step is compiled for.

    Attributes:
      architecture: the checkpoint's name of it, such as "LlamaForCausalLM".
      group_size: query heads per KV head.
      windows: per layer, how many tokens back attention sees; None is all.
      context_length: longest sequence the model was made for, in tokens.
      dtype: of weights and activations; one of `DTYPES`.
      eos_token_ids: ids that end a sequence, as the config has them.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    context_length: int
    dtype: str
    tie_embeddings: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps of a token."""
        return (KVSpec(self.num_kv_heads, self.head_dim),) * self.num_layers

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The named axes that parameters are declared with."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "feed_forward": self.intermediate_size,
            "kv_heads": self.num_kv_heads,
            "group": self.group_size,
            "group+2": self.group_size + 2,
            "head_dim": self.head_dim,
        }


def read_decoder(hf: HFConfig, **differences: Any) -> ModelConfig:
    """The config of a Llama-like decoder; `differences` are a family's own values of `ModelConfig` fields.

    Raises:
      ModelError: a field is missing or makes no sense, or asks for something no family here does.
    """
    if "quantization_config" in hf:
        method = hf["quantization_config"].get("quant_method", hf["quantization_config"])
        raise ModelError(f"quantized checkpoints are not supported: quantization_config is {method!r}")
    if hf.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {hf['hidden_act']!r} is not supported, only 'silu'")
    hidden_size, num_heads = positive(hf, "hidden_size"), positive(hf, "num_attention_heads")
    num_kv_heads = positive(hf, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
    if hf.get("head_dim") is None and "head_dim" not in differences and hidden_size % num_heads:
        raise ModelError(f"hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}")
    head_dim = differences.pop("head_dim", None) or positive(hf, "head_dim", hidden_size // num_heads)
    num_layers = positive(hf, "num_hidden_layers")
    values: dict[str, Any] = {
        "architecture": hf["architectures"][0],
        "vocab_size": positive(hf, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": positive(hf, "intermediate_size"),
        "num_layers": num_layers,
        "num_kv_heads": num_kv_heads,
        "group_size": num_heads // num_kv_heads,
        "head_dim": head_dim,
        "norm_eps": float(hf.get("rms_norm_eps", 1e-6)),
        "rope": read_rope(hf, head_dim),
        "windows": (None,) * num_layers,
        "context_length": _context_length(hf),
        "dtype": _dtype(hf),
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        "eos_token_ids": token_ids(hf.get("eos_token_id")),
    }
    return ModelConfig(**(values | differences))


def positive(hf: HFConfig, name: str, default: int | None = None) -> int:
    """A positive integer of the config; absent or null means the default."""
    value = hf.get(name)
    value = default if value is None else value
    if value is None:
        raise ModelError(f"config.json has no {name}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{name} must be a positive integer, not {value!r}")
    return value


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Token ids of a config field that holds none, one or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def sliding_windows(hf: HFConfig) -> tuple[int | None, ...]:
    """Per-layer windows as Qwen configs say them: `layer_types`, or every layer from `max_window_layers` on."""
    num_layers = positive(hf, "num_hidden_layers")
    if not hf.get("use_sliding_window", False) or hf.get("sliding_window") is None:
        return (None,) * num_layers
    window = positive(hf, "sliding_window")
    first = hf.get("max_window_layers", num_layers)
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    types = hf.get("layer_types") or default
    if len(types) != num_layers or not {*types} <= {"sliding_attention", "full_attention"}:
        raise ModelError(f"layer_types {types!r} is not supported for {num_layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def rope_parameters(hf: HFConfig) -> dict[str, Any]:
    """Rotary settings under one set of names: transformers 5 has `rope_parameters`, before it was two fields."""
    older = {"rope_theta": hf.get("rope_theta"), **(hf.get("rope_scaling") or {})}
    given = {**older, **(hf.get("rope_parameters") or {})}
    given["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    return given


def read_rope(hf: HFConfig, head_dim: int) -> Rope:
    """The rotary embedding of a config, with its scaling."""
    given = rope_parameters(hf)
    if head_dim % 2 or (hf.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1) != 1:
        raise ModelError("rotary embedding of a part of the head is not supported")
    theta = float(given.get("rope_theta") or 10000.0)
    kind = given["rope_type"]
    if kind == "default":
        return Rope(head_dim, theta)
    try:
        return Rope(head_dim, theta, _scaling(kind, given, hf))
    except KeyError as error:
        raise ModelError(f"rope scaling {kind!r} has no {error.args[0]}") from None


def _scaling(kind: str, given: Mapping[str, Any], hf: HFConfig) -> Linear | Llama3 | Yarn:
    factor = float(given["factor"])
    if kind == "linear":
        return Linear(factor)
    if kind == "llama3":
        low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
        return Llama3(factor, low, high, int(given["original_max_position_embeddings"]))
    if kind == "yarn" and not {"mscale", "mscale_all_dim", "truncate"} & given.keys():
        original = int(given.get("original_max_position_embeddings") or positive(hf, "max_position_embeddings"))
        attention_factor = given.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
        betas = float(given.get("beta_fast") or 32), float(given.get("beta_slow") or 1)
        return Yarn(factor, original, *betas, float(attention_factor))
    raise ModelError(f"rope scaling {kind!r} with {sorted(given)} is not supported: default, linear, llama3, yarn are")


def _context_length(hf: HFConfig) -> int:
    """`max_position_embeddings`, times the factor of a scaling whose config still states the length before it."""
    length = positive(hf, "max_position_embeddings")
    given = rope_parameters(hf)
    if given["rope_type"] in ("linear", "yarn"):
        original = int(given.get("original_max_position_embeddings") or length)
        return max(length, int(original * float(given.get("factor", 1.0))))
    return length


def _dtype(hf: HFConfig) -> str:
    """The checkpoint's dtype; transformers 5 says `dtype`, before it was `torch_dtype`."""
    dtype = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported: {', '.join(DTYPES)} are")
    return dtype
