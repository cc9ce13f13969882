"""Inputs for kernels: the cases that parity tests, ahead-of-time compilation and benchmarks share.

Page ids are shuffled, and every cache slot that holds no token is NaN, so that a kernel that reads one shows it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHORT_DTYPES = {"bfloat16": "bf16", "float32": "f32", "float8_e4m3fn": "f8"}


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """One call of `paged_decode` (`q_lens` is None) or `paged_prefill`.

    Attributes:
      kv_lens: tokens per row, new ones included; 0 is a padding row.
      q_lens: new tokens per row, None for decode.
      num_tokens: T of a prefill, at least sum(q_lens); the rest is padding. 0 means sum(q_lens).
      max_pages: P; 0 means the longest row's pages, up to a power of two.
      num_pages: N; 0 means a few more than the rows use.
      dtype: of q, and of the caches unless `kv_dtype` names another.
      causal: False is for prefills whose rows share their keys; `q_lens` may then be any.
    """

    kv_lens: tuple[int, ...]
    q_lens: tuple[int, ...] | None = None
    num_tokens: int = 0
    num_kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    page_size: int = 16
    max_pages: int = 0
    num_pages: int = 0
    dtype: str = "bfloat16"
    kv_dtype: str = ""
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    causal: bool = True
    return_lse: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        lens = _summary(self.kv_lens) if self.q_lens is None else f"{_summary(self.q_lens)}of{_summary(self.kv_lens)}"
        heads = f"K{self.num_kv_heads}G{self.group}H{self.head_dim}p{self.page_size}"
        window = f"-w{self.window}" if self.window is not None else ""
        soft_cap = f"-c{self.soft_cap:g}" if self.soft_cap is not None else ""
        dtypes = _SHORT_DTYPES[self.dtype] + ("" if not self.kv_dtype else f"kv{_SHORT_DTYPES[self.kv_dtype]}")
        flags = {"sinks": self.sinks, "all": not self.causal, "lse": self.return_lse, self.note: self.note}
        return f"{lens}-{heads}-{dtypes}{window}{soft_cap}" + "".join(f"-{name}" for name, on in flags.items() if on)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments; what only some kernels know is left out where the case does not ask for it."""
        options: dict[str, Any] = dict(scale=self.head_dim**-0.5, window=self.window, soft_cap=self.soft_cap)
        if self.sinks:
            heads = self.num_kv_heads, self.group
            options["sinks"] = np.random.default_rng(5).standard_normal(heads, np.float32) * 2
        if not self.causal:
            options["causal"] = False
        if self.return_lse:
            options["return_lse"] = True
        return options

    @property
    def pages_per_row(self) -> list[int]:
        return [-(-length // self.page_size) for length in self.kv_lens]

    def sizes(self) -> tuple[int, int, int]:
        """(T, P, N) with the defaults filled in."""
        num_tokens = len(self.kv_lens) if self.q_lens is None else self.num_tokens or sum(self.q_lens)
        max_pages = self.max_pages or 1 << (max(1, *self.pages_per_row) - 1).bit_length()
        return num_tokens, max_pages, self.num_pages or sum(self.pages_per_row) + 3

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The positional arguments' shapes, for compiling ahead of time."""
        num_tokens, max_pages, num_pages = self.sizes()
        dtype, num_rows = jnp.dtype(self.dtype), len(self.kv_lens)
        cache_shape = self.num_kv_heads, num_pages, self.page_size, self.head_dim
        cache = jax.ShapeDtypeStruct(cache_shape, jnp.dtype(self.kv_dtype or self.dtype))
        shapes = (
            jax.ShapeDtypeStruct((num_tokens, self.num_kv_heads, self.group, self.head_dim), dtype),
            cache,
            cache,
            jax.ShapeDtypeStruct((num_rows, max_pages), jnp.int32),
            jax.ShapeDtypeStruct((num_rows,), jnp.int32),
        )
        return shapes if self.q_lens is None else (*shapes, jax.ShapeDtypeStruct((num_rows + 1,), jnp.int32))

    def make(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Random positional arguments: q, k_cache, v_cache, page_table, kv_lens and, for a prefill, q_starts."""
        rng = np.random.default_rng(seed)
        num_tokens, max_pages, num_pages = self.sizes()
        page_table, holds_token = self._pages(rng, max_pages, num_pages)
        dtype = jnp.dtype(self.dtype)
        cache_shape = (2, self.num_kv_heads, num_pages, self.page_size, self.head_dim)
        caches = rng.standard_normal(cache_shape, np.float32)
        caches[:, :, ~holds_token] = np.nan
        q = rng.standard_normal((num_tokens, self.num_kv_heads, self.group, self.head_dim), np.float32)
        kv_dtype = jnp.dtype(self.kv_dtype or self.dtype)
        args = [jnp.asarray(q, dtype), *jnp.asarray(caches, kv_dtype), jnp.asarray(page_table)]
        args.append(jnp.asarray(self.kv_lens, jnp.int32))
        if self.q_lens is not None:
            args.append(jnp.asarray(np.concatenate([[0], np.cumsum(self.q_lens)]), jnp.int32))
        return tuple(args)

    def _pages(self, rng: np.random.Generator, max_pages: int, num_pages: int) -> tuple[np.ndarray, np.ndarray]:
        """Shuffled pages per row, and which of the (N, page) cache slots hold a token."""
        shuffled = rng.permutation(num_pages)
        page_table = rng.integers(0, num_pages, (len(self.kv_lens), max_pages)).astype(np.int32)
        holds_token = np.zeros((num_pages, self.page_size), bool)
        taken = 0
        for row, (length, pages) in enumerate(zip(self.kv_lens, self.pages_per_row, strict=True)):
            page_table[row, :pages] = shuffled[taken : taken + pages]
            positions = np.arange(length)
            holds_token[page_table[row, positions // self.page_size], positions % self.page_size] = True
            taken += pages
        return page_table, holds_token


@dataclasses.dataclass(frozen=True)
class WriteCase:
    """One call of `write_kv`: `num_tokens` tokens, of which the last `num_padding` are dropped."""

    num_tokens: int
    num_padding: int = 0
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    num_pages: int = 8
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        sizes = f"{self.num_tokens}-K{self.num_kv_heads}H{self.head_dim}p{self.page_size}N{self.num_pages}"
        return f"{sizes}-{_SHORT_DTYPES[self.dtype]}"

    @property
    def kwargs(self) -> dict[str, Any]:
        return {}

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The positional arguments' shapes, for compiling ahead of time."""
        dtype = jnp.dtype(self.dtype)
        cache = jax.ShapeDtypeStruct((self.num_kv_heads, self.num_pages, self.page_size, self.head_dim), dtype)
        new = jax.ShapeDtypeStruct((self.num_tokens, self.num_kv_heads, self.head_dim), dtype)
        return cache, cache, new, new, jax.ShapeDtypeStruct((self.num_tokens,), jnp.int32)

    def make(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Random positional arguments: k_cache, v_cache, k, v, kv_index."""
        rng = np.random.default_rng(seed)
        num_slots = self.num_pages * self.page_size
        kv_index = rng.permutation(num_slots)[: self.num_tokens].astype(np.int32)
        if self.num_padding:
            kv_index[-self.num_padding :] = rng.choice([-1, -7, num_slots, num_slots + 5], self.num_padding)
        arrays = [rng.standard_normal(shape.shape, np.float32) for shape in self.shapes()[:4]]
        return *(jnp.asarray(array, self.dtype) for array in arrays), jnp.asarray(kv_index)


@dataclasses.dataclass(frozen=True)
class FilterCase:
    """One call of `sampling_threshold`, with every kind of row in turn.

    Attributes:
      peak: how peaked the rows are: weights are a uniform number to this power.
    """

    num_rows: int
    vocab_size: int
    peak: float = 4.0
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.num_rows}x{self.vocab_size}-peak{self.peak:g}"

    @property
    def kwargs(self) -> dict[str, Any]:
        return {}

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The positional arguments' shapes, for compiling ahead of time."""
        of_rows = [jax.ShapeDtypeStruct((self.num_rows,), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)]
        return jax.ShapeDtypeStruct((self.num_rows, self.vocab_size), jnp.float32), *of_rows

    def make(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Random positional arguments: weights, top_k, top_p, min_p.

        Weights are multiples of 2^-10: the sums of some 10,000 are exact in any order, and many tie.
        """
        rng = np.random.default_rng(seed)
        weights = np.round(rng.random((self.num_rows, self.vocab_size)) ** self.peak * 1024) / 1024
        weights[np.arange(self.num_rows), rng.integers(0, self.vocab_size, self.num_rows)] = 1
        kinds = [
            (0, 1.0, 0.0),
            (self.vocab_size // 3 + 1, 1.0, 0.0),
            (0, 0.95, 0.0),
            (3, 0.5, 0.0),
            (self.vocab_size + 7, 0.3, 0.4),
            (1, 1.0, 0.1),
        ]
        columns = zip(*(kinds[row % len(kinds)] for row in range(self.num_rows)), strict=True)
        of_rows = (jnp.asarray(x, dtype) for x, dtype in zip(columns, ("int32", "float32", "float32"), strict=True))
        return jnp.asarray(weights, jnp.float32), *of_rows


def _summary(lens: tuple[int, ...]) -> str:
    """(7, 7, 7) as "3x7", other short tuples in full."""
    if len(set(lens)) == 1:
        first, *others = lens
        return f"{len(lens)}x{first}" if others else str(first)
    return "_".join(map(str, lens)) if len(lens) <= 8 else f"{len(lens)}rows{min(lens)}to{max(lens)}"
