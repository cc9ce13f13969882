"""Cases of `paged_decode`."""

from typing import Any

from sgjax.kernels.cases import AttentionCase as Case

PARITY = (
    Case(kv_lens=(1,)),
    Case(kv_lens=(40, 0, 16, 17, 1, 130)),
    Case(kv_lens=(40, 0, 16, 17, 1, 130), dtype="float32"),
    Case(kv_lens=(5, 300, 0, 64), page_size=64, num_kv_heads=3, group=3, max_pages=16, note="paddedP"),
    Case(kv_lens=(100, 33), page_size=32, num_kv_heads=1, group=8, head_dim=128, dtype="float32"),
    Case(kv_lens=(129, 300), page_size=128, num_kv_heads=2, group=1, head_dim=128),
    Case(kv_lens=(70, 3, 0, 200), window=5),
    Case(kv_lens=(70, 3, 0, 200), window=64, dtype="float32"),
    Case(kv_lens=(70, 3, 0, 200), soft_cap=3.0),
    Case(kv_lens=(600, 513, 1), window=100, soft_cap=2.0, num_kv_heads=3, group=3),
    Case(kv_lens=(0, 0)),
)

# Steps of SmolLM2-135M on a CPU.
_smollm: dict[str, Any] = dict(num_kv_heads=3, group=3)
BENCHMARK_CPU = (
    *(Case(kv_lens=(kv_len,) * rows, **_smollm) for kv_len in (256, 512, 1100) for rows in (4, 16, 64)),
    Case(kv_lens=tuple(100 + 60 * i for i in range(16)), **_smollm),
)

# Steps of Llama-3.1-8B on a GPU.
BENCHMARK_GPU = tuple(
    Case(kv_lens=(kv_len,) * rows, num_kv_heads=8, group=4, head_dim=128, page_size=64)
    for rows, kv_len in ((1, 2048), (8, 2048), (64, 2048), (256, 1024))
)

# For the tuner: a case for each bucket that gets sizes of its own, and what it tries of the fields of `mosaic.Tuning`.
TUNING_CASES = tuple(
    Case(
        kv_lens=(kv_len,) * rows,
        num_kv_heads=8,
        group=4,
        head_dim=head_dim,
        page_size=page_size,
        kv_dtype=kv_dtype,
    )
    for kv_dtype in ("", "float8_e4m3fn")
    for head_dim in (128, 64)
    for page_size in (16, 64)
    for rows, kv_len in ((64, 4096), (8, 4096), (256, 1024))
)
TUNING_VALUES = {
    "block_keys": (64, 128),
    "max_stages": (2, 4, 6, 8),
    "programs_per_multiprocessor": (1, 2),
    "min_split_keys": (64, 128, 256),
}
