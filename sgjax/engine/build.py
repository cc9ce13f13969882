"""Puts an engine together: model, kernels, KV pool, scheduler. The one place that resolves "auto" settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sgjax.cache.kv import kv_bytes_per_page, kv_dtype
from sgjax.cache.manager import CacheManager
from sgjax.config import ConfigError, EngineConfig
from sgjax.engine.batch import SchedulerLimits
from sgjax.engine.buckets import Buckets
from sgjax.engine.compiler import use_persistent_cache
from sgjax.engine.core import EngineCore
from sgjax.engine.info import EngineInfo
from sgjax.engine.lowering import scratch_bytes
from sgjax.engine.memory import pool_pages
from sgjax.engine.metrics import EngineMetrics
from sgjax.engine.observer import EngineObserver
from sgjax.engine.packing import Packer
from sgjax.engine.runner import Runner
from sgjax.engine.scheduler import Scheduler
from sgjax.engine.sharing import CASCADE_MIN_SAVED_TOKENS, PrefixSharing
from sgjax.grammar import GrammarCompiler
from sgjax.kernels import Choices, Ops, resolve
from sgjax.models.config import ModelConfig
from sgjax.models.loader import LoadedModel, load_model
from sgjax.text import Tokenizer, load_tokenizer

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """Everything an `Engine` is made of. `info.config` has every "auto" filled in."""

    info: EngineInfo
    model_config: ModelConfig
    tokenizer: Tokenizer
    core: EngineCore
    grammars: GrammarCompiler
    metrics: EngineMetrics


def build_core(config: EngineConfig, on_progress: Progress, kernels: Choices | None = None) -> BuiltEngine:
    """Loads the model, sizes the KV pool and compiles the first steps.

    Args:
      kernels: in place of `config.kernels`, which cannot hold functions.

    Raises:
      ConfigError, ModelError, CheckpointError: what cannot be served.
    """
    started_s = time.monotonic()
    use_persistent_cache(config.compile_cache_dir)
    device = jax.devices()[0]
    try:
        ops = resolve(config.kernels if kernels is None else kernels, device.platform, device.device_kind)
    except ValueError as error:
        raise ConfigError("kernels", str(error)) from None
    model = load_model(config, progress=lambda done, total: on_progress("loading weights", done / total))
    config = resolve_config(config, model.config, device.platform)
    tokenizer = load_tokenizer(
        Path(config.tokenizer_path) if config.tokenizer_path else model.tokenizer_source,
        chat_template=config.chat_template,
        eos_token_ids=model.eos_token_ids,
    )
    metrics = EngineMetrics()
    num_pages, runner = _make_runner(config, model, ops, device)
    if not config.skip_warmup:
        runner.warm_up(on_progress)
    core = _make_core(config, runner, num_pages, device.platform, metrics)
    grammars = GrammarCompiler(
        tokenizer.to_json(),
        vocab_size=model.config.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids,
        on_compiled=metrics.on_grammar_compiled,
    )
    info = _describe(config, model, num_pages, device.device_kind, time.monotonic() - started_s)
    return BuiltEngine(info, model.config, tokenizer, core, grammars, metrics)


def _describe(
    config: EngineConfig, model: LoadedModel, num_pages: int, device_kind: str, startup_s: float
) -> EngineInfo:
    assert config.context_length is not None
    return EngineInfo(
        config=config,
        model_name=_model_name(config.model_path),
        architecture=model.config.architecture,
        vocab_size=model.config.vocab_size,
        context_length=config.context_length,
        generation_defaults=model.generation,
        tokenizer_source=config.tokenizer_path or str(model.tokenizer_source),
        eos_token_ids=model.eos_token_ids,
        num_pages=num_pages,
        kv_cache_bytes=num_pages * _page_bytes(config, model),
        startup_s=startup_s,
        device=device_kind,
    )


def resolve_config(config: EngineConfig, model: ModelConfig, platform: str) -> EngineConfig:
    """Fills in what depends on the model and the platform ("cpu" or "gpu").

    Raises:
      ConfigError: a setting that this model cannot honour.
    """
    on_cpu = platform == "cpu"
    context_length = config.context_length or model.context_length
    if context_length > model.context_length:
        raise ConfigError("context_length", f"{context_length} exceeds the model's {model.context_length}")
    return config.replace(
        dtype=model.dtype,
        kv_cache_dtype=model.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        context_length=context_length,
        max_running_requests=config.max_running_requests or (64 if on_cpu else 256),
        chunked_prefill_size=config.chunked_prefill_size or (1024 if on_cpu else 8192),
    )


def _make_runner(config: EngineConfig, model: LoadedModel, ops: Ops, device: Any) -> tuple[int, Runner]:
    """Pages of the KV pool, and the runner that owns it."""
    buckets = _make_buckets(config, model.config, ops, device.platform)
    page_size, dtype = config.page_size, kv_dtype(config.kv_cache_dtype)
    max_running, context = buckets.decode_rows[-1], config.context_length
    assert context is not None
    num_pages = pool_pages(
        device,
        page_bytes=_page_bytes(config, model),
        page_size=page_size,
        scratch_bytes=scratch_bytes(model, ops, buckets, page_size, dtype),
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)),
        most_tokens=max_running * context,
        max_total_tokens=config.max_total_tokens,
        mem_fraction=config.mem_fraction_static,
        context_length=context,
    )
    runner = Runner(
        model, ops, buckets, num_slots=max_running, num_pages=num_pages, page_size=page_size, kv_dtype=dtype
    )
    return num_pages, runner


def _make_buckets(config: EngineConfig, model: ModelConfig, ops: Ops, platform: str) -> Buckets:
    max_running, chunk, context = config.max_running_requests, config.chunked_prefill_size, config.context_length
    assert max_running is not None
    assert chunk is not None
    assert context is not None
    max_pages = -(-context // config.page_size)
    return Buckets.make(
        max_running=max_running,
        chunk_tokens=chunk,
        prefill_rows=min(max_running, 16 if platform == "cpu" else 64),
        max_pages=max_pages,
        min_pages=min(max_pages, 256 // config.page_size) if ops.time_grows_with_table else max_pages,
        cascade=_uses_cascade(config, model, ops),
    )


def _make_core(
    config: EngineConfig, runner: Runner, num_pages: int, platform: str, observer: EngineObserver
) -> EngineCore:
    buckets, page_size = runner.buckets, config.page_size
    max_running, (chunk, prefill_rows) = buckets.decode_rows[-1], buckets.prefill[-1]
    scheduler = Scheduler(
        CacheManager(num_pages, page_size, enabled=not config.disable_radix_cache, on_evicted=observer.on_evicted),
        SchedulerLimits(
            max_running=max_running,
            chunk_tokens=chunk,
            prefill_rows=prefill_rows,
            policy=config.schedule_policy,
            aging_s=config.schedule_aging_s,
        ),
        observer=observer,
    )
    packer = Packer(
        buckets,
        max_running=max_running,
        num_pages=num_pages,
        page_size=page_size,
        vocab_size=runner.model.config.vocab_size,
        sharing=PrefixSharing(page_size, CASCADE_MIN_SAVED_TOKENS[platform]) if buckets.cascade else None,
    )
    return EngineCore(scheduler, packer, runner, overlap=not config.disable_overlap_schedule, observer=observer)


def _uses_cascade(config: EngineConfig, model: ModelConfig, ops: Ops) -> bool:
    shares = not config.disable_radix_cache and not config.disable_cascade_attention
    return shares and ops.supports_cascade and None in model.windows


def _page_bytes(config: EngineConfig, model: LoadedModel) -> int:
    return kv_bytes_per_page(model.config.kv_specs, config.page_size, kv_dtype(config.kv_cache_dtype))


def _model_name(model_path: str) -> str:
    return "SmolLM2-135M-Instruct" if model_path == "embedded" else Path(model_path).name.removesuffix(".gguf")
