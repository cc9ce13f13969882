"""A plain driver of `forward`: pages in shuffled order, everything unused NaN, batches packed by hand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.config import EngineConfig
from sgjax.kernels import Ops, resolve
from sgjax.layers.batch import ForwardBatch
from sgjax.models.forward import forward, logits
from sgjax.models.loader import LoadedModel, load_model

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
PAGE = 16

_forward = jax.jit(forward, static_argnames=("graphdef", "ops"), donate_argnames="cache")
_log_probs = jax.jit(
    lambda params, hidden, graphdef: jax.nn.log_softmax(logits(params, hidden, graphdef=graphdef)),
    static_argnames="graphdef",
)


@dataclasses.dataclass
class Driver:
    """Rows of tokens that grow step by step; `log_probs[row]` collects the model's output at every position."""

    model: LoadedModel
    num_rows: int
    max_len: int
    ops: Ops = dataclasses.field(default_factory=lambda: resolve("*=xla", "cpu"))

    def __post_init__(self):
        pages_per_row = -(-self.max_len // PAGE)
        num_pages = self.num_rows * pages_per_row + 3
        pages = np.random.default_rng(0).permutation(num_pages)[: self.num_rows * pages_per_row]
        self.pages = pages.reshape(self.num_rows, pages_per_row).astype(np.int32)
        self.lens = np.zeros(self.num_rows, np.int32)
        self.cache = [
            tuple(
                jnp.full((s.num_kv_heads, num_pages, PAGE, s.head_dim), jnp.nan, self.model.config.dtype) for _ in "kv"
            )
            for s in self.model.config.kv_specs
        ]
        self.log_probs: list[list[np.ndarray]] = [[] for _ in range(self.num_rows)]

    def feed(self, rows: list[np.ndarray], *, decode: bool = False, pad_to: int = 0) -> None:
        """Appends `rows[s]` to row s, in one batch padded to `pad_to` tokens (each a padding row, when decoding)."""
        padding = max(0, pad_to - sum(len(row) for row in rows))
        tokens = np.concatenate([*rows, np.zeros(padding, np.int64)]).astype(np.int32)
        positions = np.concatenate(
            [start + np.arange(len(row)) for start, row in zip(self.lens, rows, strict=True)] + [np.zeros(padding)]
        ).astype(np.int32)
        owner = np.repeat(np.arange(self.num_rows), [len(row) for row in rows])
        real = len(owner)
        kv_index = np.full(len(tokens), 2**30, np.int32)
        kv_index[:real] = self.pages[owner, positions[:real] // PAGE] * PAGE + positions[:real] % PAGE
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        self.lens += np.diff(starts).astype(np.int32)
        kv_lens, page_table = self.lens, self.pages
        if decode:
            assert real == self.num_rows
            starts = np.arange(len(tokens) + 1)
            kv_lens = np.concatenate([kv_lens, np.zeros(padding, np.int32)])
            page_table = np.concatenate([page_table, np.zeros((padding, page_table.shape[1]), np.int32)])
        arrays = (
            tokens,
            positions,
            kv_index,
            starts.astype(np.int32),
            kv_lens,
            page_table,
            starts[1:].astype(np.int32) - 1,
        )
        batch = ForwardBatch(*map(jnp.asarray, arrays), decode=decode)
        hidden, self.cache = _forward(self.model.params, batch, self.cache, graphdef=self.model.graphdef, ops=self.ops)
        out = _log_probs(self.model.params, hidden, graphdef=self.model.graphdef)
        for row, (start, end) in enumerate(itertools.pairwise(starts[: self.num_rows + 1])):
            self.log_probs[row].extend(np.asarray(out[start:end]))


@pytest.fixture(scope="session")
def load_golden() -> Callable[..., LoadedModel]:
    def load(name: str, **settings) -> LoadedModel:
        return load_model(EngineConfig(model_path=str(GOLDEN / name), **{"dtype": "float32", **settings}))

    return load


@pytest.fixture(scope="session")
def driver() -> type[Driver]:
    return Driver
