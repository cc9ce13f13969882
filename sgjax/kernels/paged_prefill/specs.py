"""Cases of `paged_prefill`."""

from typing import Any

from sgjax.kernels.cases import AttentionCase as Case

_ragged: dict[str, Any] = dict(q_lens=(1, 70, 0, 130, 3, 0), kv_lens=(30, 70, 0, 200, 16, 32), num_tokens=256)
PARITY = (
    Case(q_lens=(1,), kv_lens=(1,)),
    Case(q_lens=(64,), kv_lens=(64,), num_tokens=128),
    Case(**_ragged),
    Case(**_ragged, dtype="float32"),
    Case(**_ragged, page_size=64, num_kv_heads=3, group=3, max_pages=16, note="paddedP"),
    Case(q_lens=(20, 50), kv_lens=(100, 50), page_size=32, num_kv_heads=1, group=8, head_dim=128, dtype="float32"),
    Case(q_lens=(40, 129), kv_lens=(300, 129), page_size=128, num_kv_heads=2, group=1, head_dim=128),
    Case(**_ragged, window=5),
    Case(**_ragged, window=40, dtype="float32"),
    Case(**_ragged, soft_cap=3.0),
    Case(q_lens=(100, 8), kv_lens=(600, 513), window=100, soft_cap=2.0, num_kv_heads=3, group=3),
    Case(q_lens=(0, 0), kv_lens=(0, 0), num_tokens=64, note="allpadding"),
)

# Prefills of SmolLM2-135M on a CPU: one prompt, several, extensions of a cached prefix, many short prompts.
_smollm: dict[str, Any] = dict(num_kv_heads=3, group=3)
BENCHMARK_CPU = (
    Case(q_lens=(256,), kv_lens=(256,), **_smollm),
    Case(q_lens=(512,), kv_lens=(512,), **_smollm),
    Case(q_lens=(1024,), kv_lens=(1024,), **_smollm),
    Case(q_lens=(256,) * 4, kv_lens=(256,) * 4, **_smollm),
    Case(q_lens=(64,) * 8, kv_lens=(1088,) * 8, **_smollm),
    Case(q_lens=(32,) * 16, kv_lens=(32,) * 16, **_smollm),
)

# Prefills of Llama-3.1-8B on a GPU.
_llama: dict[str, Any] = dict(num_kv_heads=8, group=4, head_dim=128, page_size=64)
BENCHMARK_GPU = (
    Case(q_lens=(1024,) * 8, kv_lens=(1024,) * 8, **_llama),
    Case(q_lens=(8192,), kv_lens=(8192,), **_llama),
    Case(q_lens=(64,) * 16, kv_lens=(4160,) * 16, **_llama),
)

# For the tuner, as in `paged_decode.specs`: prompts, and extensions of a cached prefix.
TUNING_CASES = tuple(
    Case(
        q_lens=(q_len,) * rows,
        kv_lens=(kv_len,) * rows,
        num_kv_heads=8,
        group=4,
        head_dim=head_dim,
        page_size=page_size,
    )
    for head_dim in (128, 64)
    for page_size in (16, 64)
    for rows, q_len, kv_len in ((1, 8192, 8192), (2, 1024, 4096), (4, 64, 2048))
)
TUNING_VALUES = {"block_keys": (64, 128), "num_stages": (2, 3, 4)}
