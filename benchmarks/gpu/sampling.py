"""The second call of a step: sampling from float32 logits, against reading them once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.measure import median_s, random_array
from benchmarks.gpu.report import Settings, report
from sgjax.engine.steps import sample_step
from sgjax.kernels import resolve
from sgjax.layers.sampling import SamplingRows

# XLA launches loops and branches from the host, which waits for what decides them. With this it captures them.
_CAPTURE_LOOPS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION"
}
_IMPLEMENTATIONS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "mosaic": ("sampling_threshold=mosaic", None),
    "xla": ("sampling_threshold=xla", None),
    "xla, loops captured": ("sampling_threshold=xla", _CAPTURE_LOOPS),
}
_FILTERS: dict[str, dict[str, Any]] = {
    "top_p 0.95": dict(top_p=0.95),
    "top_k 50": dict(top_k=50),
    "top_k 50 top_p 0.95": dict(top_k=50, top_p=0.95),
    "temperature": {},
}


def run(settings: Settings) -> None:
    """Llama 3's vocabulary, at batch 64 and at the smallest that is compiled."""
    vocab_size = 300 if settings.tiny else 128256
    for num_rows in (2,) if settings.tiny else (64, 4):
        logits = 2 * random_array(settings.seed, (num_rows, vocab_size), jnp.float32)
        # The interpreter of Hopper kernels takes seconds a call; `check mosaic` has one.
        for impl in (name for name in _IMPLEMENTATIONS if not settings.tiny or name != "mosaic"):
            for filters, values in list(_FILTERS.items())[: 1 if settings.tiny else None]:
                report(
                    f"sampling batch {num_rows} {filters}", _time, impl, logits, _rows(num_rows, **values), impl=impl
                )


def _time(impl: str, logits: jax.Array, rows: SamplingRows) -> dict:
    num_rows = len(logits)
    slots = jnp.arange(num_rows, dtype=jnp.int32)
    step = _compiled(impl, logits.shape)
    state = [jnp.zeros(num_rows, jnp.int32)]

    def call(_: int) -> jax.Array:
        state[0], tokens = step(logits, state[0], slots, rows)
        return tokens

    return {"seconds": median_s(call, calls=20), "bytes": logits.nbytes}


@functools.cache
def _compiled(impl: str, shape: tuple[int, int]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    kernels, options = _IMPLEMENTATIONS[impl]
    device = jax.devices()[0]
    ops = resolve(kernels, device.platform, device.device_kind)

    def step(logits: jax.Array, last_token: jax.Array, slots: jax.Array, rows: SamplingRows) -> Any:
        return sample_step(logits, None, last_token, slots, rows, None, None, None, ops=ops)[:2]

    of_rows = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    args = jax.ShapeDtypeStruct(shape, jnp.float32), of_rows, of_rows, jax.eval_shape(lambda: _rows(shape[0]))
    return jax.jit(step, donate_argnums=1).lower(*args).compile(options)


def _rows(num_rows: int, top_k: int = -1, top_p: float = 1.0) -> SamplingRows:
    return SamplingRows(
        temperature=jnp.ones(num_rows),
        top_k=jnp.full(num_rows, top_k, jnp.int32),
        top_p=jnp.full(num_rows, top_p),
        min_p=jnp.zeros(num_rows),
        seed=jnp.asarray(np.arange(2 * num_rows).reshape(-1, 2), jnp.uint32),
        position=jnp.arange(num_rows, dtype=jnp.int32),
    )
