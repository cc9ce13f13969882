"""Hugging Face transformers' continuous batching, with random weights, on the smaller of the offline workloads."""

# pyright: reportMissingImports=false
# A peer is no dependency, and not installed where the types are checked.

from __future__ import annotations

import time

from benchmarks.gpu import workloads
from benchmarks.gpu.report import Settings, need, report
from benchmarks.gpu.workloads import LLAMA_8B, LLAMA_TINY, Offline


def run(settings: Settings) -> None:
    workload = workloads.offline(settings.tiny)[-1]
    report(f"offline {workload.name}", _generate, workload, settings, impl="transformers")


def _generate(workload: Offline, settings: Settings) -> dict:
    need("torch", "transformers")
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    shape = LLAMA_TINY if settings.tiny else LLAMA_8B
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**{key: value for key, value in shape.items() if key not in ("architectures", "torch_dtype")})
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    generated = 0
    seconds = 0.0
    for output_len in (min(8, workload.output_len), workload.output_len):  # The first warms up.
        options = GenerationConfig(max_new_tokens=output_len, do_sample=False, eos_token_id=None, pad_token_id=0)
        size = workload.requests, workload.input_len
        prompts = torch.randint(1, shape["vocab_size"], size, device="cpu").tolist()
        started = time.perf_counter()
        with torch.inference_mode():
            outputs = model.generate_batch(prompts, generation_config=options, progress_bar=False)
        seconds = time.perf_counter() - started
        generated = sum(len(output.generated_tokens) for output in outputs.values())
    if generated != workload.requests * workload.output_len:
        raise AssertionError(f"{generated} tokens instead of {workload.requests * workload.output_len}")
    return {"seconds": seconds, "tokens_per_s": round(generated / seconds)}
