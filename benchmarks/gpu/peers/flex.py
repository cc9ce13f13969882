"""PyTorch's flex_attention, decoding over pages and prefilling over keys in one piece."""

# pyright: reportMissingImports=false
# A peer is no dependency, and not installed where the types are checked.

from __future__ import annotations

from typing import Any

from benchmarks.gpu import workloads
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import HEAD_DIM, HEADS, KV_HEADS, Decode, Prefill

_PAGE = 128  # The smallest block of keys that its kernels take by default.


def run(settings: Settings) -> None:
    for decode in workloads.bfloat16_decodes(settings.tiny):
        if not report(decode.name, _decode, decode, settings.seed, impl="flex_attention"):
            return
    for prefill in workloads.prefills(settings.tiny)[:3]:
        report(prefill.name, _prefill, prefill, settings.seed, impl="flex_attention")


def _attention() -> Any:
    """Compiled; on a CPU, where only the call is tried, as it is."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if torch.cuda.is_available() else flex_attention


def _decode(case: Decode, seed: int) -> dict:
    need("torch")
    import torch
    from torch.nn.attention.experimental._paged_attention import PagedAttention
    from torch.nn.attention.flex_attention import create_block_mask, noop_mask

    from benchmarks.gpu.peers.torch_timing import DEVICE, median_s, normal

    num_pages = case.batch * -(-case.kv_len // _PAGE)
    pages = PagedAttention(num_pages, _PAGE, case.batch, device=DEVICE)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
    pages.empty_pages = order.tolist()
    for row in range(case.batch):
        pages.reserve(torch.tensor(row, device=DEVICE), torch.tensor(case.kv_len, device=DEVICE))
    kv_lens = torch.full((case.batch,), case.kv_len, device=DEVICE)
    logical = create_block_mask(noop_mask, case.batch, None, 1, case.kv_len, device=DEVICE, BLOCK_SIZE=(_PAGE, _PAGE))
    mask = pages.convert_logical_block_mask(logical, kv_len=kv_lens)
    caches = [normal(seed + i, (1, KV_HEADS, num_pages * _PAGE, HEAD_DIM)) for i in range(2)]
    q = normal(seed, (case.batch, HEADS, 1, HEAD_DIM))
    attend = _attention()
    seconds = median_s(lambda i: attend(q, *caches, block_mask=mask, enable_gqa=True), calls=4)
    return {"seconds": seconds, "bytes": case.bytes, "page_size": _PAGE}


def _prefill(case: Prefill, seed: int) -> dict:
    need("torch")
    from torch.nn.attention.flex_attention import create_block_mask

    from benchmarks.gpu.peers.torch_timing import DEVICE, median_s, normal

    cached = case.kv_len - case.q_len
    mask = create_block_mask(
        lambda b, h, q_index, kv_index: q_index + cached >= kv_index, None, None, case.q_len, case.kv_len, device=DEVICE
    )
    q = normal(seed, (1, HEADS, case.q_len, HEAD_DIM))
    keys_values = [normal(seed + i, (1, KV_HEADS, case.kv_len, HEAD_DIM)) for i in range(2)]
    attend = _attention()
    return {
        "seconds": median_s(lambda i: attend(q, *keys_values, block_mask=mask, enable_gqa=True), calls=4),
        "flops": case.flops,
    }
