"""What the design left open, with figures: the order of the cache's axes, and what launching many buffers costs.

The others (autotuning, one call or two, page size) are variants in `steps.py`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.kernels import BYTES_PER_TOKEN, HEADS
from benchmarks.gpu.measure import Settings, median_s, random_array, report

# Axis order of the cache: the gather's einsum letters, and how to index it by page id. Letters: k KV head, s row,
# p page of the row, c token of the page, g query head of the group, h head size.
_AXIS_ORDERS = {
    "K,N,page,H": ("kspch", lambda cache, page_table: cache[:, page_table]),
    "N,K,page,H": ("spkch", lambda cache, page_table: cache[page_table]),
    "N,page,K,H": ("spckh", lambda cache, page_table: cache[page_table]),
}


def run(settings: Settings) -> None:
    for batch, kv_len in ((2, 64),) if settings.tiny else ((64, 2048), (8, 2048), (256, 1024)):
        for order in _AXIS_ORDERS:
            report(f"axis order {order}, batch {batch} kv {kv_len}", _gather_decode, order, batch, kv_len, settings)
    for num_leaves in (30, 100, 300):
        for how in ("jit", "compiled"):
            report(f"dispatch of {num_leaves} leaves, {how}", _dispatch, num_leaves, how)


def _gather_decode(order: str, batch: int, kv_len: int, settings: Settings) -> dict:
    """Decode attention as XLA does it with a gather and two products, four layers in turn."""
    letters, gather = _AXIS_ORDERS[order]
    page_size, pages = 64, -(-kv_len // 64)
    sizes = {"K": HEADS["num_kv_heads"], "N": batch * pages, "page": page_size, "H": HEADS["head_dim"]}
    shape = [sizes[axis] for axis in order.split(",")]
    caches = [tuple(random_array(settings.seed + 2 * i + j, shape) for j in range(2)) for i in range(4)]
    page_table = jnp.asarray(np.random.default_rng(settings.seed).permutation(batch * pages).reshape(batch, pages))
    q = random_array(settings.seed, (batch, HEADS["num_kv_heads"], HEADS["group"], HEADS["head_dim"]))

    @jax.jit
    def layers(q: jax.Array, caches: Any, page_table: jax.Array) -> jax.Array:
        for cache in caches:
            keys, values = (gather(x, page_table) for x in cache)
            scores = jnp.einsum(f"skgh,{letters}->skgpc", q, keys, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores * HEADS["head_dim"] ** -0.5, axis=(-2, -1)).astype(q.dtype)
            out = jnp.einsum(f"skgpc,{letters}->skgh", weights, values, preferred_element_type=jnp.float32)
            # In a model a layer's gather waits for the layer before.
            q, page_table = jax.lax.optimization_barrier((out.astype(q.dtype), page_table))
        return q

    seconds = median_s(lambda i: layers(q, caches, page_table), calls=4) / len(caches)
    return {"seconds": seconds, "bytes": batch * kv_len * BYTES_PER_TOKEN}


def _dispatch(num_leaves: int, how: str) -> dict:
    """Host time until a call with so many buffers returns, a fifth of them donated, nothing to wait for."""
    num_donated = num_leaves // 5
    donated = [jnp.zeros(8) for _ in range(num_donated)]
    kept = [jnp.zeros(8) for _ in range(num_leaves - num_donated)]
    step: Any = jax.jit(lambda donated, kept, x: ([a + x for a in donated], x + 1), donate_argnums=0, keep_unused=True)
    if how == "compiled":  # What the engine calls.
        step = step.lower(donated, kept, jnp.float32(0)).compile()
    x = jnp.float32(0)
    samples = []
    for _ in range(50):
        jax.block_until_ready((donated, x))
        start = time.perf_counter()
        donated, x = step(donated, kept, x)
        samples.append(time.perf_counter() - start)
    return {"seconds": statistics.median(samples)}
