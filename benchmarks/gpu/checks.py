"""Every kernel against the float32 reference, on fresh random data; the caches hold NaN wherever no token is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.gpu.measure import relative_error
from benchmarks.gpu.report import Settings, report
from benchmarks.gpu.workloads import GROUP, HEAD_DIM, KV_HEADS
from sgjax.kernels import OP_NAMES, resolve
from sgjax.kernels.cases import AttentionCase, FilterCase, WriteCase

Case = AttentionCase | WriteCase | FilterCase

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


_BATCH = 16  # cases that are compiled at the same time


def llama_cases(op: str) -> list[Case]:
    """The most important first."""
    if op == "write_kv":
        return [WriteCase(num_tokens=300, num_padding=44, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, num_pages=64)]
    if op == "sampling_threshold":
        return [FilterCase(num_rows=24, vocab_size=128256), FilterCase(num_rows=7, vocab_size=151937)]
    if op == "paged_decode":
        return [dataclasses.replace(_DECODE, **change) for change in _CHANGES]
    changes = (*_CHANGES[:9], _ALL_KEYS, *_CHANGES[9:])
    return [dataclasses.replace(_PREFILL, **change) for change in changes]


def parity_cases(op: str) -> list[Case]:
    """Those of the parity tests, which are small."""
    return list(importlib.import_module(f"sgjax.kernels.{op}.specs").PARITY)


def check_xla(settings: Settings) -> None:
    _check_all("xla", settings)


def check_mosaic(settings: Settings) -> None:
    _check_all("mosaic", settings)


def _check_all(impl: str, settings: Settings) -> None:
    """All ops' important cases before anybody's small ones."""
    every = [(op, case) for make in (llama_cases, parity_cases) for op in OP_NAMES for case in make(op)]
    if impl == "mosaic":
        every = [(op, case) for op, case in every if case.dtype == "bfloat16" or isinstance(case, FilterCase)]
    if settings.tiny:
        every = [next((op, case) for op, case in every if op == name and case in parity_cases(op)) for name in OP_NAMES]
    with ThreadPoolExecutor() as pool:
        for batch in itertools.batched(every, _BATCH):
            # Traced here, one after the other; it is the compilers that are slow.
            results = [[_start_compiling(pool, op, name, case) for name in (impl, "reference")] for op, case in batch]
            for (op, case), pair in zip(batch, results, strict=True):
                report(f"{op} {case.name}", _check, op, case, *pair, settings.seed, impl=impl)


def _check(op: str, case: Case, out: Future[Any], reference: Future[Any], seed: int) -> dict:
    """The error on one case, and what it may be."""
    args = case.make(seed)
    expected = reference.result()(*_widened(args))
    tolerance = 0.0 if op == "write_kv" else TOLERANCES[case.dtype]
    return {"error": relative_error(out.result()(*args), expected), "tolerance": tolerance}


def _start_compiling(pool: ThreadPoolExecutor, op: str, impl: str, case: Case) -> Future[Any]:
    """Without autotuning, which would take longer than all the rest. What cannot be traced raises at `result`."""
    shapes = _widened(case.shapes()) if impl == "reference" else case.shapes()
    try:
        with jax.default_matmul_precision("highest" if impl == "reference" else None):
            lowered = jax.jit(functools.partial(implementation(op, impl), **case.kwargs)).lower(*shapes)
    except Exception as error:
        refused: Future[Any] = Future()
        refused.set_exception(error)
        return refused
    return pool.submit(lowered.compile, {"xla_gpu_autotune_level": 0})


def _widened(args: Sequence[Any]) -> list[Any]:
    """Floating point as float32."""

    def wide(arg: Any) -> Any:
        if not jnp.issubdtype(arg.dtype, jnp.floating):
            return arg
        if isinstance(arg, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(arg.shape, jnp.float32)
        return arg.astype(jnp.float32)

    return [wide(arg) for arg in args]


def implementation(op: str, impl: str) -> Callable[..., Any]:
    """What `resolve` gives for the device at hand; on a CPU, a Hopper kernel in its interpreter."""
    device = jax.devices()[0]
    function = getattr(resolve(f"{op}={impl}", device.platform, device.device_kind), op)
    if impl != "mosaic" or device.platform != "cpu":
        return function
    options = _interpreter_options(op)

    def interpreted(*args: Any, **kwargs: Any) -> Any:
        with on_this_device(impl):
            return function(*args, **options, **kwargs)

    return interpreted


def _interpreter_options(op: str) -> dict[str, Any]:
    """A Hopper kernel's options for the interpreter, in which each program of a GPU takes its time: two are enough."""
    module = importlib.import_module(f"sgjax.kernels.{op}.mosaic")
    options: dict[str, Any] = {}
    if "interpreted" in inspect.signature(getattr(module, op)).parameters:
        options["interpreted"] = True
    if hasattr(module, "Tuning"):
        names = {field.name for field in dataclasses.fields(module.Tuning)} & {"multiprocessors", "num_programs"}
        options["tuning"] = module.Tuning(**dict.fromkeys(names, 2))
    return options


def on_this_device(impl: str) -> contextlib.AbstractContextManager[Any]:
    """The Hopper kernels run on a CPU in their interpreter."""
    if impl == "mosaic" and jax.default_backend() == "cpu":
        return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    return contextlib.nullcontext()
