"""Every kernel against the float32 reference, on fresh random data; the caches hold NaN wherever no token is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.gpu.measure import relative_error
from benchmarks.gpu.report import Settings, report
from benchmarks.gpu.workloads import GROUP, HEAD_DIM, KV_HEADS
from sgjax.kernels import OP_NAMES, resolve
from sgjax.kernels.cases import AttentionCase, WriteCase

Case = AttentionCase | WriteCase

# tf32 products, XLA's default for float32 on a GPU, come to 3e-4; bf16 operands to 1e-3 .. 1e-2.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2}

_LLAMA: dict[str, Any] = dict(num_kv_heads=KV_HEADS, group=GROUP, head_dim=HEAD_DIM, page_size=64)
_DECODE = AttentionCase(kv_lens=(2048, 1000, 37, 0, 1, 4097, 64, 65), **_LLAMA)
_PREFILL = AttentionCase(q_lens=(512, 64, 1, 300), kv_lens=(512, 2000, 300, 4000), **_LLAMA)
# Changes to those two: every page size with every head size that is common, the other head sizes, every option.
_CHANGES: tuple[dict[str, Any], ...] = (
    *(dict(page_size=page_size, head_dim=head_dim) for head_dim in (128, 64) for page_size in (64, 16, 32, 128)),
    dict(return_lse=True),
    dict(kv_dtype="float8_e4m3fn"),
    dict(kv_dtype="float8_e4m3fn", page_size=16, return_lse=True),
    dict(window=300),
    dict(soft_cap=30.0),
    dict(sinks=True),
    dict(window=300, soft_cap=30.0, sinks=True, return_lse=True, page_size=16),
    *(dict(head_dim=head_dim) for head_dim in (256, 96, 80)),
)
_ALL_KEYS = dict(causal=False, return_lse=True)  # A prefix that rows share.


def cases(op: str) -> list[Case]:
    """The most important first; those of the parity tests, which are small, last."""
    parity = importlib.import_module(f"sgjax.kernels.{op}.specs").PARITY
    if op == "write_kv":
        return [WriteCase(num_tokens=300, num_padding=44, num_kv_heads=KV_HEADS, head_dim=128, num_pages=64), *parity]
    if op == "paged_decode":
        return [*(dataclasses.replace(_DECODE, **change) for change in _CHANGES), *parity]
    changes = (*_CHANGES[:9], _ALL_KEYS, *_CHANGES[9:])
    return [*(dataclasses.replace(_PREFILL, **change) for change in changes), *parity]


def check_xla(settings: Settings) -> None:
    _check_all("xla", settings)


def check_mosaic(settings: Settings) -> None:
    _check_all("mosaic", settings)


def _check_all(impl: str, settings: Settings) -> None:
    for op in OP_NAMES:
        every = [case for case in cases(op) if impl != "mosaic" or case.dtype == "bfloat16"]
        if settings.tiny:
            small = [case for case in every if case in importlib.import_module(f"sgjax.kernels.{op}.specs").PARITY]
            every = small[1:2]
        for case in every:
            report(f"{op} {case.name}", check, op, impl, case, settings.seed, impl=impl)


def check(op: str, impl: str, case: Case, seed: int) -> dict:
    """The error of one implementation on one case, and what it may be."""
    args = case.make(seed)
    with jax.default_matmul_precision("highest"):
        wide = [a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
        expected = _run_once(_function(op, "reference"), wide, case)
    with on_this_device(impl):
        out = jax.block_until_ready(_run_once(_function(op, impl), args, case))
    return {"error": relative_error(out, expected), "tolerance": 0.0 if op == "write_kv" else TOLERANCES[case.dtype]}


def _function(op: str, impl: str) -> Callable[..., Any]:
    device = jax.devices()[0]
    return getattr(resolve(f"*={impl}", device.platform, device.device_kind), op)


def _run_once(function: Callable[..., Any], args: Sequence[jax.Array], case: Case) -> Any:
    """Without autotuning, which would take longer than all the rest."""
    lowered = jax.jit(lambda *a: function(*a, **case.kwargs)).lower(*args)
    return lowered.compile({"xla_gpu_autotune_level": 0})(*args)


def on_this_device(impl: str) -> contextlib.AbstractContextManager[Any]:
    """The Hopper kernels run on a CPU in their interpreter."""
    if impl == "mosaic" and jax.default_backend() == "cpu":
        return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    return contextlib.nullcontext()
