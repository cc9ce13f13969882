"""Rotary position embedding (Su et al., 2021) and the ways checkpoints stretch it to longer contexts.

Frequencies follow Hugging Face transformers' `modeling_rope_utils`; halves, not neighbours, are rotated together.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation (Chen et al., 2023): positions divided by `factor`."""

    factor: float

    def stretch(self, frequencies: np.ndarray, rope: Rope) -> np.ndarray:
        return frequencies / np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_len: int

    def stretch(self, frequencies: np.ndarray, rope: Rope) -> np.ndarray:
        turns = self.original_context_len * frequencies / (2 * math.pi)  # in the original context
        keep = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return frequencies * ((1 - keep) / self.factor + keep)


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al., 2023): a blend over the dimensions, and cos and sin scaled by `attention_factor`."""

    factor: float
    original_context_len: int
    beta_fast: float
    beta_slow: float
    attention_factor: float

    def stretch(self, frequencies: np.ndarray, rope: Rope) -> np.ndarray:
        def dimension(turns: float) -> float:
            """The (fractional) index of the frequency that makes this many turns in the original context."""
            wavelengths = self.original_context_len / (turns * 2 * math.pi)
            return rope.head_dim * math.log(wavelengths) / (2 * math.log(rope.theta))

        low = max(math.floor(dimension(self.beta_fast)), 0)
        high = min(math.ceil(dimension(self.beta_slow)), rope.head_dim - 1)
        ramp = (np.arange(rope.head_dim // 2) - low) / max(high - low, 0.001)
        keep = 1 - np.clip(ramp, 0, 1)
        return frequencies * ((1 - keep) / self.factor + keep)


@dataclasses.dataclass(frozen=True)
class Rope:
    """What determines the angles: `theta` is the base of the frequencies' geometric series."""

    head_dim: int
    theta: float
    scaling: Linear | Llama3 | Yarn | None = None

    def frequencies(self) -> np.ndarray:
        """float32 (H/2,), radians a position."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        frequencies = (1.0 / self.theta**exponents).astype(np.float32)
        if self.scaling is None:
            return frequencies
        return self.scaling.stretch(frequencies, self).astype(np.float32)


def rotary_angles(positions: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every token, float32 (T, H/2) each. Compute them once a step, not once a layer."""
    angles = positions[:, None].astype(jnp.float32) * rope.frequencies()
    scale = rope.scaling.attention_factor if isinstance(rope.scaling, Yarn) else 1.0
    # The barrier keeps XLA from fusing cos and sin into every layer, where it would compute them for every head.
    return jax.lax.optimization_barrier((jnp.cos(angles) * scale, jnp.sin(angles) * scale))


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x, (T, ..., H), by each token's angles: dimension i together with i + H/2."""
    cos, sin = (a.reshape(a.shape[0], *(1,) * (x.ndim - 2), a.shape[1]) for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
