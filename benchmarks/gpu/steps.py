"""Whole decode steps of Llama shapes, as the engine launches them, against the bytes that they must read."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.measure import median_s, random_caches
from benchmarks.gpu.report import Settings, report
from benchmarks.gpu.workloads import LLAMA_1B, LLAMA_8B, LLAMA_TINY
from sgjax.engine.steps import forward_step, sample_step
from sgjax.kernels import resolve
from sgjax.layers.batch import ForwardBatch
from sgjax.models.config import ModelConfig
from sgjax.models.registry import build, read_config
from sgjax.models.spec import ParamSpec, declare

CONTEXT = 1024  # tokens of every row, the new one included
MAX_CONTEXT = 8192  # width of the page table, as an engine with this context_length has it


class Variant(NamedTuple):
    """A way to launch a step.

    Attributes:
      calls: "two" is the engine's: forward_step, then sample_step. "one" jits both together, "forward" leaves out the
        second. Two minus one is what docs/adr/0001 costs.
      autotune: XLA chooses among matrix-product kernels by timing them.
      batch_on_device: the batch's arrays are there already; the engine sends them from the host with every step.
    """

    kernels: str = "*=auto"
    calls: str = "two"
    page_size: int = 64
    autotune: bool = True
    batch_on_device: bool = False

    @property
    def name(self) -> str:
        defaults = Variant()._asdict()
        changed = {field: value for field, value in self._asdict().items() if value != defaults[field]}
        return " ".join(f"{field}={value}" for field, value in changed.items()) or "sgjax"


Plan = tuple[tuple[int, tuple[Variant, ...]], ...]
"""Batch sizes, and the variants of each."""

_ENGINE, _ONE, _FORWARD = Variant(), Variant(calls="one"), Variant(calls="forward")
_NO_AUTOTUNE, _ON_DEVICE = Variant(autotune=False), Variant(batch_on_device=True)
_PAGE_16, _XLA = Variant(page_size=16), Variant(kernels="*=xla")
_PLAN_8B: Plan = (*((batch, (_ENGINE,)) for batch in (1, 64, 256, 8)), (64, (_ONE,)))
_PLAN_1B: Plan = (
    (1, (_ENGINE, _ONE, _ON_DEVICE)),
    (64, (_ENGINE, _ONE, _FORWARD, _PAGE_16, _NO_AUTOTUNE, _XLA)),
    (8, (_ENGINE,)),
    (256, (_ENGINE,)),
)


def run_8b(settings: Settings) -> None:
    """Llama-3.1-8B's shape."""
    if settings.tiny:
        return _run(settings, "8B", LLAMA_TINY, ((2, (_ENGINE,)),))
    _run(settings, "8B", LLAMA_8B, _PLAN_8B)


def run_1b(settings: Settings) -> None:
    """Llama-3.2-1B's shape, with the design's open questions as variants."""
    if settings.tiny:
        unlike = Variant(calls="one", page_size=16, autotune=False, batch_on_device=True)
        return _run(settings, "1B", LLAMA_TINY, ((3, (_ENGINE, _FORWARD, unlike)),))
    _run(settings, "1B", LLAMA_1B, _PLAN_1B)


def _run(settings: Settings, size: str, hf: dict[str, Any], plan: Plan) -> None:
    cfg = read_config(hf)
    graphdef, specs = declare(build(cfg))
    params = _draw(specs, settings.seed)
    for batch, variants in plan:
        for variant in variants:
            name = f"step {size}, batch {batch}"
            report(name, _step, cfg, graphdef, params, batch, variant, settings, impl=variant.name)


def _draw(specs: Any, seed: int) -> Any:
    """As `sgjax.models.loader.draw_params`, which needs the packages of checkpoint formats."""

    @jax.jit(static_argnames=("shape", "dtype", "deviation"))
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: str, deviation: float | None) -> jax.Array:
        return jnp.ones(shape, dtype) if deviation is None else jax.random.normal(key, shape, dtype) * deviation

    leaves, tree = jax.tree.flatten(specs)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs: list[tuple[jax.Array, ParamSpec]] = list(zip(keys, leaves, strict=True))
    return tree.unflatten([draw(key, spec.shape, spec.dtype, spec.deviation) for key, spec in pairs])


def _step(cfg: ModelConfig, graphdef: Any, params: Any, batch: int, variant: Variant, settings: Settings) -> dict:
    context, max_context = (40, 64) if settings.tiny else (CONTEXT, MAX_CONTEXT)
    inputs = _batch(batch, context, max_context // variant.page_size, variant.page_size)
    num_pages = inputs.page_table.max() + 1
    slots = np.arange(batch, dtype=np.int32)
    if variant.batch_on_device:
        inputs, slots = jax.device_put((inputs, slots))
    sizes = (cfg.num_kv_heads, int(num_pages), variant.page_size, cfg.head_dim)
    k_cache, v_cache = random_caches(settings.seed, *sizes)
    # Donated, so that each needs its own buffer.
    state = [[(k_cache + 0, v_cache + 0) for _ in range(cfg.num_layers)], jnp.zeros(batch, jnp.int32)]
    del k_cache, v_cache
    launch = _compile(graphdef, params, state, inputs, slots, variant)

    def call(i: int) -> Any:
        state[0], state[1], out = launch(params, state[0], state[1], inputs, slots)
        return out

    seconds = median_s(call, calls=4 if settings.tiny else 30, repeats=5)
    if not bool(jnp.isfinite(state[0][-1][0]).all()):
        raise AssertionError("the step wrote keys that are not finite")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not cfg.tie_embeddings:
        weights -= cfg.vocab_size * cfg.hidden_size * 2  # Of the embedding a step reads a row per token.
    kv = sum(2 * spec.num_kv_heads * spec.head_dim * 2 for spec in cfg.kv_specs) * batch * context
    return {"seconds": seconds, "bytes": weights + kv, "tokens_per_s": round(batch / seconds)}


def _batch(batch: int, context: int, max_pages: int, page_size: int) -> ForwardBatch:
    """A decode step of rows of `context` tokens on shuffled pages, as numpy arrays."""
    pages = -(-context // page_size)
    page_table = np.zeros((batch, max_pages), np.int32)
    page_table[:, :pages] = np.random.default_rng(0).permutation(batch * pages).reshape(batch, pages)
    last, rows = context - 1, np.arange(batch, dtype=np.int32)
    arrays: Any = {
        "token_ids": np.zeros(batch, np.int32),
        "positions": np.full(batch, last, np.int32),
        "kv_index": page_table[:, last // page_size] * page_size + last % page_size,
        "q_starts": np.arange(batch + 1, dtype=np.int32),
        "kv_lens": np.full(batch, context, np.int32),
        "page_table": page_table,
        "logit_index": rows,
    }
    return ForwardBatch(**arrays, decode=True)


def _compile(graphdef: Any, params: Any, state: list, inputs: ForwardBatch, slots: Any, variant: Variant) -> Any:
    """(params, cache, last_token, batch, slots) -> (cache, last_token, something to wait for), compiled."""
    device = jax.devices()[0]
    ops = resolve(variant.kernels, device.platform, device.device_kind)
    options = None if variant.autotune else {"xla_gpu_autotune_level": 0}

    def forward(params: Any, cache: Any, last_token: Any, batch: Any, slots: Any) -> Any:
        cache, row_logits, _ = forward_step(params, cache, last_token, batch, slots, graphdef=graphdef, ops=ops)
        return cache, row_logits

    def sample(row_logits: Any, last_token: Any, slots: Any) -> Any:
        last_token, tokens, _, _ = sample_step(row_logits, None, last_token, slots, None, None, None, None, ops=ops)
        return last_token, tokens

    def together(params: Any, cache: Any, last_token: Any, batch: Any, slots: Any) -> Any:
        cache, row_logits = forward(params, cache, last_token, batch, slots)
        return cache, *sample(row_logits, last_token, slots)

    args = params, *state, inputs, slots
    if variant.calls == "one":
        return jax.jit(together, donate_argnums=(1, 2)).lower(*args).compile(options)
    run_forward = jax.jit(forward, donate_argnums=1).lower(*args).compile(options)
    if variant.calls == "forward":

        def only_forward(params: Any, cache: Any, last_token: Any, batch: Any, slots: Any) -> Any:
            cache, row_logits = run_forward(params, cache, last_token, batch, slots)
            return cache, last_token, row_logits

        return only_forward
    row_logits = jax.eval_shape(forward, *args)[1]
    run_sample = jax.jit(sample, donate_argnums=1).lower(row_logits, state[1], slots).compile()

    def two_calls(params: Any, cache: Any, last_token: Any, batch: Any, slots: Any) -> Any:
        cache, row_logits = run_forward(params, cache, last_token, batch, slots)
        return cache, *run_sample(row_logits, last_token, slots)

    return two_calls
