"""Times of the sampling layer at 64 rows of SmolLM2's vocabulary, or of another shape.

    python -m benchmarks.sampling [--rows 64] [--vocab 49152]

The logits' spread is such that the entropy is about that of a language model (printed).
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from sgjax.layers import sampling


def rows(num_rows: int, *, temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0):
    """One setting for all rows."""
    return sampling.SamplingRows(
        temperature=jnp.full(num_rows, temperature, jnp.float32),
        top_k=jnp.full(num_rows, top_k, jnp.int32),
        top_p=jnp.full(num_rows, top_p, jnp.float32),
        min_p=jnp.full(num_rows, min_p, jnp.float32),
        seed=jnp.arange(2 * num_rows, dtype=jnp.uint32).reshape(-1, 2),
        position=jnp.arange(num_rows, dtype=jnp.int32),
    )


def penalties(num_rows: int, vocab_size: int) -> sampling.PenaltyRows:
    padding = jnp.full((num_rows, 8), vocab_size, jnp.int32)
    value = jnp.full(num_rows, 0.5, jnp.float32)
    return sampling.PenaltyRows(value, value, value + 1, padding, jnp.zeros((num_rows, 8)), padding)


def median_ms(function, *args, repeats: int = 21) -> float:
    function = jax.jit(function)
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=49152)
    args = parser.parse_args()
    n, v = args.rows, args.vocab
    logits = jnp.asarray(np.random.default_rng(0).gumbel(size=(n, v)).astype(np.float32) * 1.6)
    flat = logits / 8
    for name, x in (("peaked", logits), ("flat", flat)):
        p = np.sort(np.asarray(jax.nn.softmax(x)))[:, ::-1]
        size = (np.cumsum(p, -1) < 0.95).sum(-1) + 1
        print(
            f"{name}: entropy {-(p * np.log(p)).sum(-1).mean():.1f} nats, top_p 0.95 keeps {size.min()} to {size.max()}"
        )
    counts = sampling.TokenCounts.zeros(n, v)
    asked = jnp.zeros((n, 0), jnp.int32)
    cases = {
        "greedy": (sampling.sample, logits, rows(n, temperature=0)),
        "temperature": (sampling.sample, logits, rows(n)),
        "min_p": (sampling.sample, logits, rows(n, min_p=0.05)),
        "top_k 50": (sampling.sample, logits, rows(n, top_k=50)),
        "top_p 0.95": (sampling.sample, logits, rows(n, top_p=0.95)),
        "top_k 50, top_p 0.95": (sampling.sample, logits, rows(n, top_k=50, top_p=0.95)),
        "top_p 0.95, flat": (sampling.sample, flat, rows(n, top_p=0.95)),
        "top_k 20000, top_p 0.95, flat": (sampling.sample, flat, rows(n, top_p=0.95, top_k=20000)),
        "penalties": (
            lambda x, p, c, s: sampling.adjust(x, p, c.rows(s)),
            logits,
            penalties(n, v),
            counts,
            jnp.arange(n),
        ),
        "logprobs": (lambda x, t, a: sampling.token_logprobs(x, t, a, 0), logits, jnp.zeros(n, jnp.int32), asked),
        "logprobs, top 5": (
            lambda x, t, a: sampling.token_logprobs(x, t, a, 5),
            logits,
            jnp.zeros(n, jnp.int32),
            asked,
        ),
    }
    for name, (function, *arguments) in cases.items():
        print(f"{name:32s} {median_ms(function, *arguments):8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
