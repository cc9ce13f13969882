"""What is known of a call of Mosaic's `paged_prefill` when it is compiled: sizes, and what they add up to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from sgjax.kernels.hopper import SHARED_MEMORY_BYTES, is_interpreted, swizzle_bytes

ROWS = 64  # Of a warpgroup: what one wgmma takes.
CONSUMERS = 2
_SHARED_BYTES = SHARED_MEMORY_BYTES - 1024
_OTHER_SHARED_BYTES = 1024  # Barriers.


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes to choose by measurement; None stands for what suits the head size.

    Attributes:
      block_keys: keys per step, 64 or 128.
      num_stages: blocks of keys, and of values, that are in shared memory at once.
      num_programs: None: one per multiprocessor of the GPU.
      max_splits: parts that keys may be cut into where queries that see all of them make too few tiles.
      producer_registers: per thread, a multiple of 16 and 8; the consumers share what it leaves of 504.
    """

    block_keys: int | None = None
    num_stages: int = 2
    num_programs: int | None = None
    max_splits: int = 8
    producer_registers: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known when the kernel is compiled.

    Attributes:
      converts: the cache is of 8 bits, and its blocks are multiplied in bfloat16.
      interpreted: keep to what Pallas' interpreter knows: no memory with two views, no operand of `wgmma` in registers.
    """

    num_kv_heads: int
    group: int
    head_dim: int
    page_size: int
    block_keys: int
    num_stages: int
    producer_registers: int
    scale: float
    window: int | None
    soft_cap: float | None
    causal: bool
    has_sinks: bool
    return_lse: bool
    converts: bool
    interpreted: bool

    @property
    def num_heads(self) -> int:
        """Query heads of a tile: the largest power of two that divides the group, so that all rows are used."""
        return math.gcd(self.group, ROWS)

    @property
    def num_tokens(self) -> int:
        """Tokens of a warpgroup's rows."""
        return ROWS // self.num_heads

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile, which is both warpgroups' rows."""
        return CONSUMERS * self.num_tokens

    @property
    def heads_of_grid(self) -> int:
        """Tiles that stand at the same tokens: one per group of heads that share a KV head and a tile."""
        return self.num_kv_heads * self.group // self.num_heads

    @property
    def copy_len(self) -> int:
        return min(self.page_size, self.block_keys)

    @property
    def copies(self) -> int:
        """Copies that fill a block of keys."""
        return self.block_keys // self.copy_len

    @property
    def swizzle(self) -> int:
        return swizzle_bytes(self.head_dim, jnp.bfloat16)

    @property
    def columns(self) -> int:
        """Of a swizzled row: queries and results are cut into as many columns, so that their rows can go anywhere."""
        return self.swizzle // 2

    @property
    def parts(self) -> tuple[Any, ...]:
        """A head's columns."""
        return tuple(pl.ds(start, self.columns) for start in range(0, self.head_dim, self.columns))

    @property
    def consumer_registers(self) -> int:
        """Per thread: all have to start with as many, a multiple of 8, as 3 * 128 threads find in 65,536."""
        return (504 - self.producer_registers) // 16 * 8

    @property
    def own_output(self) -> bool:
        """Whether results have memory of their own, so that the next tile's queries may come before they are gone."""
        return self.shared_bytes(own_output=True) <= _SHARED_BYTES

    def shared_bytes(self, own_output: bool) -> int:
        rows, block = CONSUMERS * ROWS * self.head_dim * 2, self.block_keys * self.head_dim
        fixed = rows * (1 + own_output) + 2 * block * self.converts + 1024 * self.return_lse
        return fixed + 2 * self.num_stages * block * 2 + _OTHER_SHARED_BYTES

    def query_heads(self, head: Any) -> tuple[Any, Any]:
        """KV head and query heads of the grid's `head`."""
        tiles_per_group = self.group // self.num_heads
        return lax.div(head, tiles_per_group), pl.ds(lax.rem(head, tiles_per_group) * self.num_heads, self.num_heads)


def make_plan(
    q: jax.Array,
    k_cache: jax.Array,
    tuning: Tuning,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    causal: bool,
    has_sinks: bool,
    return_lse: bool,
) -> Plan:
    """The plan of a call with these operands and options.

    Raises:
      NotImplementedError: names a size of `tuning` that the kernel does not take.
    """
    _, num_kv_heads, group, head_dim = q.shape
    converts = k_cache.dtype != q.dtype
    plan = Plan(
        num_kv_heads=num_kv_heads,
        group=group,
        head_dim=head_dim,
        page_size=k_cache.shape[2],
        block_keys=tuning.block_keys or (64 if head_dim > 128 else 128),
        num_stages=tuning.num_stages,
        producer_registers=tuning.producer_registers or (72 if converts else 24),
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        causal=causal,
        has_sinks=has_sinks,
        return_lse=return_lse,
        converts=converts,
        interpreted=is_interpreted(),
    )
    if plan.block_keys not in (64, 128):
        raise NotImplementedError(f"block_keys is {plan.block_keys}, and this kernel takes 64 and 128")
    if plan.num_stages < 2 or plan.shared_bytes(own_output=False) > _SHARED_BYTES:
        raise NotImplementedError(f"num_stages is {plan.num_stages}, and this kernel takes 2, and more if they fit")
    return plan
