"""Cases of `write_kv`."""

from sgjax.kernels.cases import WriteCase

PARITY = (
    WriteCase(num_tokens=5),
    WriteCase(num_tokens=16, num_padding=6),
    WriteCase(num_tokens=3, num_padding=3),
    WriteCase(num_tokens=33, num_padding=4, num_kv_heads=3, page_size=32, dtype="float32"),
    WriteCase(num_tokens=40, num_kv_heads=1, head_dim=128, page_size=128, num_pages=3),
)

# Steps of SmolLM2-135M on a CPU.
BENCHMARK_CPU = tuple(WriteCase(num_tokens=n, num_kv_heads=3, num_pages=2048) for n in (4, 16, 64, 256, 1024))

# Steps of Llama-3.1-8B on a GPU.
BENCHMARK_GPU = tuple(
    WriteCase(num_tokens=n, num_kv_heads=8, head_dim=128, page_size=64, num_pages=4096) for n in (64, 256, 8192)
)
