"""Which shapes of which steps are compiled, and how."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sgjax.cache.kv import kv_shape
from sgjax.engine import steps
from sgjax.engine.buckets import FEW_TOKENS, Buckets
from sgjax.engine.packing import MAX_BLOCKED
from sgjax.engine.sharing import max_groups
from sgjax.kernels import Ops
from sgjax.layers.batch import ForwardBatch, SharedPrefixes
from sgjax.layers.sampling import PenaltyRows, SamplingRows, TokenCounts
from sgjax.models.loader import LoadedModel
from sgjax.types import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKENS


# Dataclasses, whose equality includes the class: named tuples of different classes may be equal.
@dataclasses.dataclass(frozen=True, slots=True)
class ForwardKey:
    """A shape of `forward_step`: T tokens, S rows, P pages, groups of rows with a shared prefix."""

    decode: bool
    num_tokens: int
    num_rows: int
    num_pages: int
    num_groups: int = 0

    def __str__(self) -> str:
        return f"decode of {self.num_rows} rows" if self.decode else f"prefill of {self.num_tokens} tokens"


@dataclasses.dataclass(frozen=True, slots=True)
class SampleKey:
    """A variant of `sample_step`."""

    num_rows: int
    sampled: bool
    penalised: bool
    logprobs: bool

    def __str__(self) -> str:
        return f"sampling of {self.num_rows} rows"


@dataclasses.dataclass(frozen=True, slots=True)
class MaskKey:
    """A shape of `mask_step`."""

    num_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class PromptKey:
    """A shape of `prompt_step`."""

    num_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class CountsKey:
    """`counts_step`; it has one shape."""


Key = ForwardKey | SampleKey | MaskKey | PromptKey | CountsKey


def all_keys(b: Buckets) -> Iterator[Key]:
    """Every compiled shape, the most wanted first."""
    for num_tokens, num_rows in b.prefill:
        yield ForwardKey(False, num_tokens, num_rows, b.max_pages)
    row_sizes = sorted({*b.decode_rows, *(num_rows for _, num_rows in b.prefill)})
    for num_pages in b.decode_pages:
        for num_rows in b.decode_rows:
            yield ForwardKey(True, num_rows, num_rows, num_pages)
    yield from cascade_keys(b)
    for sampled, penalised in ((False, False), (True, False), (True, True)):
        for num_rows in row_sizes:
            for logprobs in (False, True):
                yield SampleKey(num_rows, sampled, penalised, logprobs)
    for num_rows in row_sizes:
        yield MaskKey(num_rows)
    for num_tokens in sorted({num_tokens for num_tokens, _ in b.prefill}):
        yield PromptKey(num_tokens)
    yield CountsKey()


def cascade_keys(b: Buckets) -> list[ForwardKey]:
    """Decode steps whose rows share prefixes."""
    sizes = b.decode_rows if b.cascade else ()
    return [ForwardKey(True, size, size, b.max_pages, max_groups(size)) for size in sizes]


def first_keys(b: Buckets) -> list[Key]:
    """What one short request needs."""
    num_tokens, num_rows = b.prefill_shape(min(FEW_TOKENS, b.prefill[-1][0]), 1)
    return [
        ForwardKey(False, num_tokens, num_rows, b.max_pages),
        ForwardKey(True, b.decode_rows[0], b.decode_rows[0], b.decode_pages[0]),
        *(SampleKey(rows, False, False, False) for rows in sorted({num_rows, b.decode_rows[0]})),
    ]


class Lowering:
    """Compiles the steps of one model for one pool, from shapes alone."""

    def __init__(self, model: LoadedModel, ops: Ops, *, num_slots: int, num_pages: int, page_size: int, kv_dtype: str):
        self._config, self._graphdef = model.config, model.graphdef  # not the model: its weights may be replaced
        self._ops = ops
        self._num_slots = num_slots
        self._params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), model.params
        )
        shapes = [kv_shape(spec, num_pages, page_size) for spec in model.config.kv_specs]
        self._cache = [(jax.ShapeDtypeStruct(s, kv_dtype), jax.ShapeDtypeStruct(s, kv_dtype)) for s in shapes]
        self._forward = jax.jit(steps.forward_step, static_argnames=("graphdef", "ops"), donate_argnames=("cache",))
        self._sample = jax.jit(steps.sample_step, static_argnames=("ops",), donate_argnames=("last_token", "counts"))
        self._mask = jax.jit(steps.mask_step)
        self._prompt = jax.jit(steps.prompt_step, static_argnames=("graphdef",))
        self._counts = jax.jit(steps.counts_step, donate_argnames=("counts",))

    def compile(self, key: Any) -> Any:
        """The executable of a key."""
        config, graphdef = self._config, self._graphdef
        match key:
            case ForwardKey():
                batch, slots = _batch(key), _ints(key.num_rows)
                args = self._params, self._cache, _ints(self._num_slots), batch, slots
                lowered = self._forward.lower(*args, graphdef=graphdef, ops=self._ops)
            case SampleKey():
                lowered = self._sample.lower(*self.sample_args(key), ops=self._ops)
            case MaskKey(num_rows):
                lowered = self._mask.lower(self._row_logits(num_rows), _ints(num_rows, -(-config.vocab_size // 32)))
            case PromptKey(num_tokens):
                hidden = jax.ShapeDtypeStruct((num_tokens, config.hidden_size), config.dtype)
                args = self._params, hidden, _ints(num_tokens), _ints(num_tokens, MAX_LOGPROB_TOKENS)
                lowered = self._prompt.lower(*args, graphdef=graphdef)
            case CountsKey():
                in_prompt = jax.ShapeDtypeStruct((config.vocab_size,), jnp.bool_)
                output_counts = jax.ShapeDtypeStruct((config.vocab_size,), jnp.int16)
                lowered = self._counts.lower(self._token_counts(), _ints(), output_counts, in_prompt)
            case _:
                raise AssertionError(key)
        return lowered.compile()

    def _token_counts(self) -> Any:
        return jax.eval_shape(lambda: TokenCounts.zeros(self._num_slots, self._config.vocab_size))

    def _row_logits(self, num_rows: int) -> Any:
        return jax.ShapeDtypeStruct((num_rows, self._config.vocab_size), jnp.float32)

    def sample_args(self, key: SampleKey) -> tuple:
        """The shapes that `sample_step` is lowered with."""
        num_rows = key.num_rows
        reals = jax.ShapeDtypeStruct((num_rows,), jnp.float32)
        rows = penalties = counts = asked = None
        if key.sampled:
            seed: Any = jax.ShapeDtypeStruct((num_rows, 2), jnp.uint32)
            rows = SamplingRows(reals, _ints(num_rows), reals, reals, seed, _ints(num_rows))  # type: ignore[arg-type]
        if key.penalised:
            ids, blocked = _ints(num_rows, MAX_LOGIT_BIAS), _ints(num_rows, MAX_BLOCKED)
            bias = jax.ShapeDtypeStruct((num_rows, MAX_LOGIT_BIAS), jnp.float32)
            penalties = PenaltyRows(reals, reals, reals, ids, bias, blocked)  # type: ignore[arg-type]
            counts = self._token_counts()
        if key.logprobs:
            asked = _ints(num_rows, MAX_LOGPROB_TOKENS)
        row_logits = self._row_logits(num_rows)
        raw_logits = row_logits if key.logprobs else None
        return row_logits, raw_logits, _ints(self._num_slots), _ints(num_rows), rows, penalties, counts, asked


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _batch(key: ForwardKey) -> ForwardBatch:
    tokens, rows = _ints(key.num_tokens), _ints(key.num_rows)
    starts, page_table = _ints(key.num_rows + 1), _ints(key.num_rows, key.num_pages)
    shared = SharedPrefixes(_ints(key.num_groups + 1), _ints(key.num_groups)) if key.num_groups else None
    return ForwardBatch(tokens, tokens, tokens, starts, rows, page_table, rows, key.decode, shared)


def scratch_bytes(model: LoadedModel, ops: Ops, buckets: Buckets, page_size: int, kv_dtype: str) -> int:
    """Temporary and output memory of the largest steps, from the compiler's own analysis.

    Compiled against a pool of one page per column, since scratch space does not grow with the pool. The result is kept
    beside JAX's compile cache: a second start does not compile for it.
    """
    folder = Path(jax.config.jax_compilation_cache_dir or ".")
    device_kind = jax.devices()[0].device_kind
    identity = (jax.__version__, device_kind, model.config, buckets, page_size, kv_dtype, ops.identity)
    path = folder / f"scratch-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.json"
    if path.exists():
        return json.loads(path.read_text())["scratch_bytes"]
    num_slots, num_pages = buckets.decode_rows[-1], buckets.max_pages
    lowering = Lowering(model, ops, num_slots=num_slots, num_pages=num_pages, page_size=page_size, kv_dtype=kv_dtype)
    largest = (
        ForwardKey(False, *buckets.prefill[-1], buckets.max_pages),
        ForwardKey(True, buckets.decode_rows[-1], buckets.decode_rows[-1], buckets.decode_pages[-1]),
        *cascade_keys(buckets)[-1:],
    )
    found = 0
    for key in largest:
        memory = lowering.compile(key).memory_analysis()
        found = max(found, memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"scratch_bytes": found}))
    partial.replace(path)  # another process may be starting too
    return found
