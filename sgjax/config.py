"""Engine configuration: one frozen dataclass, from which the command-line flags are made.

This is the only file that reads the environment. `EngineConfig` may hold "auto" (None); `resolve_config` in
`sgjax/engine/build.py` returns one with every such field filled in for a model and a device.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KVCacheDtype = Literal["auto", "bfloat16", "float16", "float32", "fp8_e4m3"]
LoadFormat = Literal["auto", "safetensors", "gguf", "orbax", "dummy"]
SchedulePolicy = Literal["lpm", "fcfs", "priority"]


_COUNTS = (
    *("context_length", "max_total_tokens", "max_running_requests", "max_queued_requests", "max_tokens_in_flight"),
    "chunked_prefill_size",
)


class ConfigError(ValueError):
    """A setting that is refused; `field` names it."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field = field


def setting(default: Any, help: str, *, aliases: tuple[str, ...] = ()) -> Any:
    """A config field with its help text and further flag names (`--tp`)."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Field names are SGLang's where it has the setting."""

    model_path: str = setting("embedded", "Checkpoint folder, GGUF file, hub id, or 'embedded'", aliases=("--model",))
    tokenizer_path: str | None = setting(None, "Tokenizer folder or file; default: with the model")
    load_format: LoadFormat = setting("auto", "How weights are stored; 'dummy' draws random ones")
    dtype: Dtype = setting("auto", "Weights and activations; auto is the checkpoint's, bfloat16 for GGUF")
    kv_cache_dtype: KVCacheDtype = setting("auto", "KV cache; auto is the activations' dtype")
    context_length: int | None = setting(None, "Longest prompt plus output, in tokens; default: the model's")
    chat_template: str | None = setting(None, "Jinja file that replaces the checkpoint's chat template")
    random_seed: int = setting(0, "Seeds dummy weights and requests that bring no seed")

    page_size: int = setting(16, "Tokens per KV page, a power of two from 16 to 128")
    max_total_tokens: int | None = setting(None, "KV pool size in tokens; default: what memory holds")
    mem_fraction_static: float | None = setting(
        None, "Share of device memory for weights and KV; default: measured from the compiled steps"
    )
    disable_radix_cache: bool = setting(False, "Share no prefixes between requests")
    disable_cascade_attention: bool = setting(False, "Read a prefix that decoding rows share once per row")

    max_running_requests: int | None = setting(None, "Sequences decoding at once; default 64 on a CPU, 256 on a GPU")
    max_queued_requests: int = setting(8192, "Waiting samples of requests before new ones are refused")
    max_tokens_in_flight: int | None = setting(
        None, "Tokens that live requests may come to before new ones are refused; default: no limit"
    )
    chunked_prefill_size: int | None = setting(
        None, "Prompt tokens in one prefill step, between two decode steps; default 1024 on a CPU, 8192 on a GPU"
    )
    schedule_policy: SchedulePolicy = setting("lpm", "Order of the waiting queue; lpm is longest prefix match")
    schedule_aging_s: float = setting(2.0, "Under lpm and priority, a request that waited this long goes first")
    disable_jump_forward: bool = setting(False, "Sample also the tokens that a grammar forces")
    disable_overlap_schedule: bool = setting(False, "Read each step before launching the next")

    kernels: str = setting("*=auto", "Kernel choice per op, such as 'paged_decode=mosaic,*=xla'")
    compile_cache_dir: str | None = setting(None, "Persistent compile cache; default: under the sgjax cache folder")
    skip_warmup: bool = setting(False, "Compile buckets when first used (tests); serving then may compile")

    def __post_init__(self):
        size = self.page_size
        if size not in (16, 32, 64, 128):
            raise ConfigError("page_size", f"must be 16, 32, 64 or 128, not {size}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"must be at least 1, not {value}")
        for name in ("random_seed", "schedule_aging_s"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"must not be negative, not {getattr(self, name)}")
        fraction = self.mem_fraction_static
        if fraction is not None and not 0 < fraction < 1:
            raise ConfigError("mem_fraction_static", f"must lie between 0 and 1, not {fraction}")
        for field in dataclasses.fields(self):
            allowed = _literal_values(field.type)
            if allowed and getattr(self, field.name) not in allowed:
                raise ConfigError(field.name, f"must be one of {', '.join(allowed)}, not {getattr(self, field.name)!r}")

    def replace(self, **changes: Any) -> EngineConfig:
        return dataclasses.replace(self, **changes)


def _literal_values(annotation: Any) -> tuple[str, ...]:
    """The allowed values of a `Literal[...]` field; annotations are strings here."""
    resolved = globals().get(annotation) if isinstance(annotation, str) else annotation
    return getattr(resolved, "__args__", ())


def cache_dir() -> Path:
    """Where sgjax keeps what it can rebuild: models, compiled steps, tokenizers. SGJAX_CACHE overrides."""
    root = os.environ.get("SGJAX_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sgjax"
    )
    return Path(root)


def hub_offline() -> bool:
    """Whether the environment forbids asking a model hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
