"""What is timed, the same for sgjax and its peers: names, bytes that must be read, operations that must be done.

Attention is that of one layer of Llama-3.1-8B.
"""

from __future__ import annotations

from typing import NamedTuple

KV_HEADS, GROUP, HEAD_DIM = 8, 4, 128
HEADS = KV_HEADS * GROUP

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
LLAMA_1B = {
    **LLAMA_8B,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA_TINY = {
    **LLAMA_1B,
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


class Decode(NamedTuple):
    """One new token for each of `batch` rows of `kv_len` tokens."""

    batch: int
    kv_len: int
    page_size: int = 64
    kv_dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        short = "" if self.kv_dtype == "bfloat16" else ", fp8"
        return f"decode {self.batch} x {self.kv_len}, page {self.page_size}{short}"

    @property
    def bytes(self) -> int:
        return self.batch * self.kv_len * 2 * KV_HEADS * HEAD_DIM * (2 if self.kv_dtype == "bfloat16" else 1)


class Prefill(NamedTuple):
    """One row's last `q_len` tokens of `kv_len`, causal: a whole prompt, or one that extends a cached prefix."""

    q_len: int
    kv_len: int
    page_size: int = 64

    @property
    def name(self) -> str:
        cached = self.kv_len - self.q_len
        return f"extend {cached} by {self.q_len}" if cached else f"prefill {self.q_len}"

    @property
    def flops(self) -> int:
        num_scores = self.q_len * self.kv_len - self.q_len * (self.q_len - 1) // 2
        return 4 * HEADS * HEAD_DIM * num_scores


class Cascade(NamedTuple):
    """A decode step whose rows share their first `prefix` tokens."""

    batch: int
    prefix: int
    suffix: int
    page_size: int = 64

    @property
    def name(self) -> str:
        return f"decode {self.batch} x (shared {self.prefix} + {self.suffix})"

    @property
    def bytes(self) -> int:
        """With the prefix read once."""
        return (self.prefix + self.batch * self.suffix) * 2 * KV_HEADS * HEAD_DIM * 2


class Offline(NamedTuple):
    """All of `requests` at once, greedy, random token ids."""

    requests: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        return f"{self.requests} requests, {self.input_len} in, {self.output_len} out"


def decodes(tiny: bool) -> tuple[Decode, ...]:
    """What matters most first."""
    if tiny:
        return Decode(3, 64), Decode(3, 64, 64, "float8_e4m3fn")
    first = Decode(64, 4096), Decode(64, 8192), Decode(1, 1024), Decode(8, 4096)
    others = (Decode(batch, kv_len) for batch in (64, 1, 8, 256) for kv_len in (1024, 4096, 8192, 32768))
    page_16 = (Decode(64, kv_len, 16) for kv_len in (4096, 8192))
    fp8 = (Decode(64, kv_len, 64, "float8_e4m3fn") for kv_len in (8192, 32768))
    return tuple(dict.fromkeys((*first, *page_16, *fp8, *others)))


def bfloat16_decodes(tiny: bool) -> tuple[Decode, ...]:
    """The few that peers are asked for: the first four rows of the goals."""
    return decodes(tiny)[: 1 if tiny else 4]


def prefills(tiny: bool) -> tuple[Prefill, ...]:
    """What matters most first."""
    if tiny:
        return (Prefill(32, 96),)
    return (
        *(Prefill(length << 10, length << 10) for length in (8, 16)),
        *(Prefill(q_len, kv_len) for q_len, kv_len in ((1024, 8192), (4096, 16384))),
        *(Prefill(length << 10, length << 10) for length in (1, 4, 32)),
    )


def cascade(tiny: bool) -> Cascade:
    return Cascade(4, 64, 16) if tiny else Cascade(128, 32768, 256)


def offline(tiny: bool) -> tuple[Offline, ...]:
    """The second is small enough for peers that are slower by far."""
    if tiny:
        return Offline(4, 20, 6), Offline(2, 20, 4)
    return Offline(256, 1024, 1024), Offline(64, 1024, 128)
