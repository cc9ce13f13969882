"""FlashInfer over pages: decode, prefill and cascade. It compiles its kernels with nvcc when they are first used."""

# pyright: reportMissingImports=false
# A peer is no dependency, and not installed where the types are checked.

from __future__ import annotations

from typing import Any

from benchmarks.gpu import workloads
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import HEAD_DIM, HEADS, KV_HEADS, Cascade, Decode, Prefill

_SIZES = HEADS, KV_HEADS, HEAD_DIM


def run(settings: Settings) -> None:
    for decode in workloads.bfloat16_decodes(settings.tiny):
        if not report(decode.name, _decode, decode, settings.seed, impl="flashinfer"):
            return
    for prefill in workloads.prefills(settings.tiny):
        report(prefill.name, _prefill, prefill, settings.seed, impl="flashinfer")
    shared = workloads.cascade(settings.tiny)
    report(shared.name, _cascade, shared, settings.seed, impl="flashinfer cascade")


def _workspace() -> Any:
    need("torch", "flashinfer")
    import torch

    if not torch.cuda.is_available():
        raise NotImplementedError("flashinfer needs a GPU")
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def _shuffled(num_pages: int, seed: int) -> Any:
    import torch

    return torch.randperm(num_pages, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").int()


def _cache(num_pages: int, page_size: int, seed: int) -> tuple[Any, Any]:
    from benchmarks.gpu.peers.torch_timing import normal

    keys, values = (normal(seed + i, (num_pages, KV_HEADS, page_size, HEAD_DIM)) for i in range(2))
    return keys, values


def _decode(case: Decode, seed: int) -> dict:
    """As many page tables as keep the L2 cache out of it, each with a plan of its own."""
    workspace = _workspace()
    import flashinfer
    import torch

    from benchmarks.gpu.peers.torch_timing import median_s, normal, num_sets

    pages_per_row = -(-case.kv_len // case.page_size)
    sets = num_sets(case.bytes)
    pages = _shuffled(sets * case.batch * pages_per_row, seed).reshape(sets, -1)
    caches = _cache(pages.numel(), case.page_size, seed)
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda") * pages_per_row
    last_page = torch.full((case.batch,), (case.kv_len - 1) % case.page_size + 1, dtype=torch.int32, device="cuda")
    wrappers = []
    for indices in pages:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        dtypes = dict(q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
        wrapper.plan(starts, indices.contiguous(), last_page, *_SIZES, case.page_size, **dtypes)
        wrappers.append(wrapper)
    q = normal(seed, (case.batch, HEADS, HEAD_DIM))
    seconds = median_s(lambda i: wrappers[i % sets].run(q, caches), calls=max(4, sets))
    return {"seconds": seconds, "bytes": case.bytes}


def _prefill(case: Prefill, seed: int) -> dict:
    workspace = _workspace()
    import flashinfer
    import torch

    from benchmarks.gpu.peers.torch_timing import median_s, normal

    pages = _shuffled(-(-case.kv_len // case.page_size), seed)
    caches = _cache(len(pages), case.page_size, seed)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
    wrapper.plan(
        torch.tensor([0, case.q_len], dtype=torch.int32, device="cuda"),
        torch.tensor([0, len(pages)], dtype=torch.int32, device="cuda"),
        pages,
        torch.tensor([(case.kv_len - 1) % case.page_size + 1], dtype=torch.int32, device="cuda"),
        *_SIZES,
        case.page_size,
        causal=True,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    q = normal(seed, (case.q_len, HEADS, HEAD_DIM))
    return {"seconds": median_s(lambda i: wrapper.run(q, caches), calls=4), "flops": case.flops}


def _cascade(case: Cascade, seed: int) -> dict:
    """Two levels: the prefix, which all rows share, and what is each row's own."""
    workspace = _workspace()
    import flashinfer
    import torch

    from benchmarks.gpu.peers.torch_timing import median_s, normal

    def numbers(values: Any) -> Any:
        return torch.tensor(list(values), dtype=torch.int32, device="cuda")

    prefix_pages, own_pages = case.prefix // case.page_size, -(-case.suffix // case.page_size)
    pages = _shuffled(prefix_pages + case.batch * own_pages, seed)
    caches = _cache(len(pages), case.page_size, seed)
    rows = range(case.batch + 1)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "HND")
    wrapper.plan(
        [numbers([0, case.batch]), numbers(rows)],
        [numbers([0, prefix_pages]), numbers(row * own_pages for row in rows)],
        [pages[:prefix_pages], pages[prefix_pages:].contiguous()],
        [numbers([case.page_size]), numbers([(case.suffix - 1) % case.page_size + 1] * case.batch)],
        *_SIZES,
        case.page_size,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    q = normal(seed, (case.batch, HEADS, HEAD_DIM))
    return {"seconds": median_s(lambda i: wrapper.run(q, caches), calls=4), "bytes": case.bytes}
