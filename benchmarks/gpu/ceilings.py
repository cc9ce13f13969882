"""What the device can do: the ceilings that every other figure is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.gpu.measure import median_s, random_array
from benchmarks.gpu.report import Settings, report


def run(settings: Settings) -> None:
    device = jax.devices()[0]
    facts = {"platform": device.platform, "kind": device.device_kind, "memory": device.memory_stats()}
    report("device", lambda: facts)
    report("copy", _copy, settings)
    report("read", _read, settings)
    report("matmul bf16", _matmul, settings)


def _arrays(settings: Settings) -> list[jax.Array]:
    """Four of 1 GiB, so that none is in the L2 cache when its turn comes again."""
    num_rows = 256 if settings.tiny else 1 << 16
    return [random_array(settings.seed + i, (num_rows, 8192)) for i in range(4)]


def _copy(settings: Settings) -> dict:
    arrays = _arrays(settings)
    copy = jax.jit(jnp.copy)
    seconds = median_s(lambda i: copy(arrays[i % 4]), calls=8)
    return {"seconds": seconds, "bytes": 2 * arrays[0].nbytes}


def _read(settings: Settings) -> dict:
    arrays = _arrays(settings)
    read = jax.jit(lambda x: x.astype(jnp.float32).sum(axis=1))
    seconds = median_s(lambda i: read(arrays[i % 4]), calls=8)
    return {"seconds": seconds, "bytes": arrays[0].nbytes}


def _matmul(settings: Settings) -> dict:
    size = 256 if settings.tiny else 8192
    a, b = (random_array(settings.seed + i, (size, size)) for i in range(2))
    multiply = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16))
    return {"seconds": median_s(lambda i: multiply(a, b), calls=8), "flops": 2 * size**3}
