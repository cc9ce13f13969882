"""The references against loops over single tokens in numpy, and the portable kernels against the references."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase, WriteCase
from sgjax.kernels.paged_decode import specs as decode_specs
from sgjax.kernels.paged_prefill import specs as prefill_specs
from sgjax.kernels.write_kv import specs as write_specs

REFERENCE, XLA = resolve("*=reference", "cpu"), resolve("*=xla", "cpu")

DECODE = (
    *decode_specs.PARITY,
    AttentionCase(kv_lens=(1000, 0, 257, 256), dtype="float32", page_size=64, num_kv_heads=3, group=3),
    AttentionCase(kv_lens=(31, 32, 33), dtype="float32", window=1, page_size=32),
    AttentionCase(kv_lens=(90, 20), dtype="float32", window=33, soft_cap=0.5, group=1, num_kv_heads=5),
    AttentionCase(kv_lens=tuple(range(9, 18)), dtype="float32", note="pageborder"),
)
PREFILL = (
    *prefill_specs.PARITY,
    AttentionCase(q_lens=(600,), kv_lens=(600,), dtype="float32", page_size=128, group=1),
    AttentionCase(q_lens=(63, 64, 65, 1), kv_lens=(63, 300, 65, 257), dtype="float32", num_tokens=256, page_size=64),
    AttentionCase(q_lens=(40, 30), kv_lens=(40, 290), dtype="float32", window=1),
    AttentionCase(q_lens=(90, 20), kv_lens=(90, 300), dtype="float32", window=70, soft_cap=0.5, num_kv_heads=3),
    AttentionCase(q_lens=(1,) * 6, kv_lens=(1, 16, 17, 31, 64, 65), dtype="float32", note="decodelike"),
)


def _name(case: AttentionCase | WriteCase) -> str:
    return case.name


def _run(function, case, seed=0) -> np.ndarray:
    args = case.make(seed)
    # Optimised, the references take longest to compile, a row at a time as they are.
    options = {"xla_backend_optimization_level": 0} if function.__module__.endswith(".reference") else None
    out = jax.jit(lambda *args: function(*args, **case.kwargs)).lower(*args).compile(options)(*args)
    assert out.dtype == jnp.dtype(case.dtype)
    return np.asarray(out, np.float32)


def _assert_close(out: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """float32: sums in another order. bfloat16: one rounding of the weights and one of the result."""
    tolerance = {"float32": dict(rtol=2e-5, atol=2e-6), "bfloat16": dict(rtol=2**-6, atol=2**-7)}[dtype]
    np.testing.assert_allclose(out, expected, **tolerance)


def _attend(q, k_cache, v_cache, pages, position, *, scale, window, soft_cap) -> np.ndarray:
    """(K, G, H) in float64: one token's attention, key by key as the contract words it."""
    page_size = k_cache.shape[2]
    out = np.zeros(q.shape)
    first = 0 if window is None else max(0, position - window + 1)
    slots = [(pages[i // page_size], i % page_size) for i in range(first, position + 1)]
    for head, group in np.ndindex(q.shape[:2]):
        scores = [scale * float(q[head, group] @ k_cache[head, page, offset]) for page, offset in slots]
        if soft_cap is not None:
            scores = [soft_cap * math.tanh(score / soft_cap) for score in scores]
        weights = [math.exp(score - max(scores)) for score in scores]
        for weight, (page, offset) in zip(weights, slots, strict=True):
            out[head, group] += weight / sum(weights) * v_cache[head, page, offset]
    return out


def _brute_force(case: AttentionCase, seed: int) -> np.ndarray:
    q, k_cache, v_cache, page_table, kv_lens, *starts = (np.asarray(a).astype(np.float64) for a in case.make(seed))
    page_table, kv_lens = page_table.astype(int), kv_lens.astype(int)
    q_starts = starts[0].astype(int) if starts else np.arange(len(kv_lens) + 1)
    out = np.zeros(q.shape)
    for row, kv_len in enumerate(kv_lens):
        for t in range(q_starts[row], q_starts[row + 1]):
            position = kv_len - (q_starts[row + 1] - t)
            if position >= 0:
                out[t] = _attend(q[t], k_cache, v_cache, page_table[row], position, **case.kwargs)
    return out


@pytest.mark.parametrize("options", [{}, dict(window=3), dict(soft_cap=0.7), dict(window=20, soft_cap=2.0)])
@pytest.mark.parametrize("q_lens", [None, (4, 0, 19, 0, 1)])
def test_reference_is_what_the_contract_says(q_lens, options):
    sizes = dict(head_dim=8, num_kv_heads=2, group=3, dtype="float32")
    case = AttentionCase(kv_lens=(4, 0, 35, 17, 1), q_lens=q_lens, **sizes, **options)
    reference = REFERENCE.paged_decode if q_lens is None else REFERENCE.paged_prefill
    np.testing.assert_allclose(_run(reference, case, 3), _brute_force(case, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", DECODE, ids=_name)
def test_paged_decode(case):
    out = _run(XLA.paged_decode, case)
    _assert_close(out, _run(REFERENCE.paged_decode, case), case.dtype)
    assert not out[np.asarray(case.kv_lens) == 0].any(), "a padding row's output is not zero"


@pytest.mark.parametrize("case", PREFILL, ids=_name)
def test_paged_prefill(case):
    assert case.q_lens is not None
    out = _run(XLA.paged_prefill, case)
    _assert_close(out, _run(REFERENCE.paged_prefill, case), case.dtype)
    assert not out[sum(case.q_lens) :].any(), "a padding token's output is not zero"


def test_prefill_of_single_tokens_is_decode():
    decode = AttentionCase(kv_lens=(40, 17, 1, 130), dtype="float32", window=50)
    args = decode.make()
    prefilled = XLA.paged_prefill(*args, jnp.arange(5, dtype=jnp.int32), **decode.kwargs)
    np.testing.assert_allclose(prefilled, XLA.paged_decode(*args, **decode.kwargs), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["paged_decode", "paged_prefill"])
def test_where_the_pages_lie_does_not_matter(name):
    """The same tokens on other pages, with other page-table entries past each row's end: equal to the bit."""
    q_lens = None if name == "paged_decode" else (40, 0, 20)
    case = AttentionCase(kv_lens=(70, 3, 300), q_lens=q_lens, num_pages=40, max_pages=32)
    q, k_cache, v_cache, page_table, *rest = case.make()
    order = np.random.default_rng(1).permutation(40)
    moved = np.argsort(order)[np.asarray(page_table)]
    for row, used in enumerate(case.pages_per_row):
        moved[row, used:] = (moved[row, used:] + 7) % 40
    run = jax.jit(lambda *args: getattr(XLA, name)(*args, **case.kwargs))
    out = run(q, k_cache, v_cache, page_table, *rest)
    elsewhere = run(q, k_cache[:, order], v_cache[:, order], jnp.asarray(moved, jnp.int32), *rest)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(elsewhere, np.float32))


@pytest.mark.parametrize("ops", [REFERENCE, XLA], ids=["reference", "xla"])
@pytest.mark.parametrize("case", write_specs.PARITY, ids=_name)
def test_write_kv(ops, case):
    *caches, k, v, kv_index = case.make()
    written = ops.write_kv(*caches, k, v, kv_index)
    for cache, new, out in zip(caches, (k, v), written, strict=True):
        expected = np.array(cache)
        for t, index in enumerate(np.asarray(kv_index)):
            if 0 <= index < case.num_pages * case.page_size:
                expected[:, index // case.page_size, index % case.page_size] = np.asarray(new)[t]
        np.testing.assert_array_equal(np.asarray(out), expected)


@pytest.mark.parametrize("ops", [REFERENCE, XLA], ids=["reference", "xla"])
def test_write_kv_casts_to_the_dtype_of_the_cache(ops):
    k_cache, v_cache, k, v, kv_index = WriteCase(num_tokens=5).make()
    out = ops.write_kv(k_cache, v_cache, k.astype(jnp.float32) * 1.001, v.astype(jnp.float32), kv_index)
    expected = ops.write_kv(k_cache, v_cache, (k.astype(jnp.float32) * 1.001).astype(jnp.bfloat16), v, kv_index)
    for cache, same in zip(out, expected, strict=True):
        assert cache.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(cache), np.asarray(same))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_write_kv_is_in_place_when_donated(dtype):
    case = WriteCase(num_tokens=64, num_kv_heads=3, num_pages=512, dtype=dtype)
    shapes = case.shapes()
    compiled = jax.jit(XLA.write_kv, donate_argnums=(0, 1)).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    cache_bytes = math.prod(shapes[0].shape) * shapes[0].dtype.itemsize
    assert memory.alias_size_in_bytes == 2 * cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 4
    for shape in re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|convert|transpose)\(", compiled.as_text()):
        assert math.prod(map(int, shape.split(","))) < math.prod(shapes[0].shape), f"copies an array of shape {shape}"
