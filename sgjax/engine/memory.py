"""How many KV pages fit: what is left on the device once weights and the compiled steps' scratch space are paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgjax.config import ConfigError

# A CPU shares its memory with everything else on the machine, so by default the pool stays modest there.
CPU_POOL_BYTES = 2 << 30
DEVICE_MARGIN = 0.03


def available_bytes(device: Any) -> int:
    """Memory that can still be allocated on a `jax.Device`; for a CPU, in this machine or container."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats["bytes_limit"]
        return int(limit * (1 - DEVICE_MARGIN)) - stats["bytes_in_use"]
    return unused_bytes()


def unused_bytes(root: Path = Path("/")) -> int:
    """Memory of this machine or container that can be had. What merely caches files counts: it gives way."""
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    unused = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = root / "sys/fs/cgroup"
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        unused = min(unused, int(limit) - used)
    return unused


def pool_pages(
    device: Any,
    *,
    page_bytes: int,
    page_size: int,
    scratch_bytes: int,
    weight_bytes: int,
    most_tokens: int,
    max_total_tokens: int | None,
    mem_fraction: float | None,
    context_length: int,
) -> int:
    """Number of pages of the KV pool.

    Args:
      page_bytes: one page in all layers. scratch_bytes: temporary memory of the largest compiled step.
      weight_bytes: what the parameters, already on the device, take.
      most_tokens: what every running sequence at its full length would take; more is never useful on a CPU.
      max_total_tokens: the user's choice; it must fit. mem_fraction: share of the device for weights and pool.

    Raises:
      ConfigError: not even one sequence of `context_length` fits, or the user's choice does not.
    """
    available, on_cpu = available_bytes(device), device.platform == "cpu"
    room = available - scratch_bytes
    if max_total_tokens is not None:
        wanted, limit = -(-max_total_tokens // page_size), room // page_bytes
        if wanted > limit:
            raise ConfigError("max_total_tokens", f"{max_total_tokens} do not fit; memory holds {limit * page_size}")
        return wanted
    if mem_fraction is not None:
        room = min(room, int((available + weight_bytes) * mem_fraction) - weight_bytes)
    elif on_cpu:
        room = min(room // 2, CPU_POOL_BYTES)
    pages = room // page_bytes
    if on_cpu:
        pages = min(pages, -(-most_tokens // page_size))
    if pages * page_size < context_length:
        raise ConfigError(
            "context_length",
            f"a sequence of {context_length} tokens does not fit in a pool of {max(pages, 0) * page_size}; "
            "lower context_length or set max_total_tokens",
        )
    return pages
