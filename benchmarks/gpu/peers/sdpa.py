"""PyTorch's scaled_dot_product_attention over keys and values in one piece, with the fastest of its backends."""

# pyright: reportMissingImports=false
# A peer is no dependency, and not installed where the types are checked.

from __future__ import annotations

from benchmarks.gpu import workloads
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import HEAD_DIM, HEADS, KV_HEADS, Decode, Prefill


def run(settings: Settings) -> None:
    for prefill in workloads.prefills(settings.tiny):
        if not report(prefill.name, _prefill, prefill, settings.seed, impl="sdpa"):
            return
    for decode in workloads.bfloat16_decodes(settings.tiny):
        report(decode.name, _decode, decode, settings.seed, impl="sdpa")


def _decode(case: Decode, seed: int) -> dict:
    need("torch")
    from benchmarks.gpu.peers.torch_timing import normal, num_sets

    shape = case.batch, KV_HEADS, case.kv_len, HEAD_DIM
    sets = [(normal(seed + i, shape), normal(seed - i, shape)) for i in range(num_sets(case.bytes))]
    q = normal(seed, (case.batch, HEADS, 1, HEAD_DIM))
    return {**_fastest(q, sets, is_causal=False), "bytes": case.bytes}


def _prefill(case: Prefill, seed: int) -> dict:
    need("torch")
    from torch.nn.attention.bias import causal_lower_right

    from benchmarks.gpu.peers.torch_timing import normal

    q = normal(seed, (1, HEADS, case.q_len, HEAD_DIM))
    sets = [tuple(normal(seed + i, (1, KV_HEADS, case.kv_len, HEAD_DIM)) for i in range(2))]
    if case.q_len == case.kv_len:
        return {**_fastest(q, sets, is_causal=True), "flops": case.flops}
    return {**_fastest(q, sets, attn_mask=causal_lower_right(case.q_len, case.kv_len)), "flops": case.flops}


def _fastest(q, sets, **mask) -> dict:
    """Of the backends that take the call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from benchmarks.gpu.peers.torch_timing import DEVICE, median_s

    backends = ("CUDNN_ATTENTION", "FLASH_ATTENTION") if DEVICE == "cuda" else ("MATH",)
    found, refusals = {}, []
    for backend in backends:
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                found[backend] = median_s(
                    lambda i: scaled_dot_product_attention(q, *sets[i % len(sets)], enable_gqa=True, **mask),
                    calls=max(4, len(sets)),
                )
        except RuntimeError as error:
            refusals.append(f"{backend}: {error}")
    if not found:
        raise NotImplementedError("; ".join(refusals))
    fastest = min(found, key=lambda backend: found[backend])
    return {"seconds": found[fastest], "backend": fastest}
