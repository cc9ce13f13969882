"""The references against loops over single tokens in numpy, and the portable kernels against the references."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase, FilterCase, WriteCase
from sgjax.kernels.lse import add_sinks, merge
from sgjax.kernels.paged_decode import specs as decode_specs
from sgjax.kernels.paged_prefill import specs as prefill_specs
from sgjax.kernels.sampling_threshold import specs as threshold_specs
from sgjax.kernels.write_kv import specs as write_specs

REFERENCE, XLA = resolve("*=reference", "cpu"), resolve("*=xla", "cpu")

DECODE = (
    *decode_specs.PARITY,
    AttentionCase(kv_lens=(1000, 0, 257, 256), dtype="float32", page_size=64, num_kv_heads=3, group=3),
    AttentionCase(kv_lens=(31, 32, 33), dtype="float32", window=1, page_size=32),
    AttentionCase(kv_lens=(90, 20), dtype="float32", window=33, soft_cap=0.5, group=1, num_kv_heads=5),
    AttentionCase(kv_lens=tuple(range(9, 18)), dtype="float32", note="pageborder"),
    AttentionCase(kv_lens=(700, 0, 20), dtype="float32", window=300, sinks=True, return_lse=True),
    AttentionCase(kv_lens=(70, 0, 20), kv_dtype="float8_e4m3fn", return_lse=True),
)
PREFILL = (
    *prefill_specs.PARITY,
    AttentionCase(q_lens=(600,), kv_lens=(600,), dtype="float32", page_size=128, group=1),
    AttentionCase(q_lens=(63, 64, 65, 1), kv_lens=(63, 300, 65, 257), dtype="float32", num_tokens=256, page_size=64),
    AttentionCase(q_lens=(40, 30), kv_lens=(40, 290), dtype="float32", window=1),
    AttentionCase(q_lens=(90, 20), kv_lens=(90, 300), dtype="float32", window=70, soft_cap=0.5, num_kv_heads=3),
    AttentionCase(q_lens=(1,) * 6, kv_lens=(1, 16, 17, 31, 64, 65), dtype="float32", note="decodelike"),
    AttentionCase(q_lens=(40, 0, 3), kv_lens=(290, 0, 20), num_tokens=64, dtype="float32", sinks=True, return_lse=True),
    AttentionCase(
        q_lens=(5, 40, 2), kv_lens=(290, 17, 0), num_tokens=64, dtype="float32", causal=False, return_lse=True
    ),
    AttentionCase(q_lens=(5, 40), kv_lens=(290, 17), causal=False, soft_cap=2.0, kv_dtype="float8_e4m3fn"),
)


def _name(case: AttentionCase | WriteCase | FilterCase) -> str:
    return case.name


def _run(function, case, seed=0) -> list[np.ndarray]:
    """The result, and the log-sum-exp where the case wants it."""
    args = case.make(seed)
    # Optimised, the references take longest to compile, a row at a time as they are.
    options = {"xla_backend_optimization_level": 0} if function.__module__.endswith(".reference") else None
    out = jax.tree.leaves(jax.jit(lambda *args: function(*args, **case.kwargs)).lower(*args).compile(options)(*args))
    assert [x.dtype for x in out] == [jnp.dtype(case.dtype), jnp.dtype("float32")][: 1 + case.return_lse]
    return [np.asarray(x, np.float32) for x in out]


def _assert_close(out: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> None:
    """float32: sums in another order. bfloat16: one rounding of the weights and one of the result."""
    tolerance = {"float32": dict(rtol=2e-5, atol=2e-6), "bfloat16": dict(rtol=2**-6, atol=2**-7)}[dtype]
    for x, y in zip(out, expected, strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def _attend(q, k_cache, v_cache, pages, position, *, scale, window, soft_cap, sinks=None) -> tuple:
    """(K, G, H) and (K, G) in float64: one token's attention, key by key as the contract words it."""
    page_size = k_cache.shape[2]
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:2])
    first = 0 if window is None else max(0, position - window + 1)
    slots = [(pages[i // page_size], i % page_size) for i in range(first, position + 1)]
    for head, group in np.ndindex(q.shape[:2]):
        scores = [scale * float(q[head, group] @ k_cache[head, page, offset]) for page, offset in slots]
        if soft_cap is not None:
            scores = [soft_cap * math.tanh(score / soft_cap) for score in scores]
        weights = [math.exp(score) for score in scores]
        total = sum(weights) + (0 if sinks is None else math.exp(sinks[head, group]))
        for weight, (page, offset) in zip(weights, slots, strict=True):
            out[head, group] += weight / total * v_cache[head, page, offset]
        lse[head, group] = math.log(total)
    return out, lse


def _brute_force(case: AttentionCase, seed: int) -> list[np.ndarray]:
    q, k_cache, v_cache, page_table, kv_lens, *starts = (np.asarray(a).astype(np.float64) for a in case.make(seed))
    page_table, kv_lens = page_table.astype(int), kv_lens.astype(int)
    q_starts = starts[0].astype(int) if starts else np.arange(len(kv_lens) + 1)
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    kwargs = {name: value for name, value in case.kwargs.items() if name not in ("causal", "return_lse")}
    for row, kv_len in enumerate(kv_lens):
        for t in range(q_starts[row], q_starts[row + 1]):
            position = kv_len - (q_starts[row + 1] - t) if case.causal else kv_len - 1
            if position >= 0:
                out[t], lse[t] = _attend(q[t], k_cache, v_cache, page_table[row], position, **kwargs)
    return [out, lse]


@pytest.mark.parametrize(
    "options", [{}, dict(window=3, sinks=True), dict(soft_cap=0.7), dict(window=20, soft_cap=2.0), dict(causal=False)]
)
@pytest.mark.parametrize("q_lens", [None, (4, 0, 19, 0, 3)])
def test_reference_is_what_the_contract_says(q_lens, options):
    sizes = dict(head_dim=8, num_kv_heads=2, group=3, dtype="float32", return_lse=True)
    if q_lens is None and "causal" in options:
        return
    case = AttentionCase(kv_lens=(4, 0, 35, 17, 3), q_lens=q_lens, **sizes, **options)
    reference = REFERENCE.paged_decode if q_lens is None else REFERENCE.paged_prefill
    for out, expected in zip(_run(reference, case, 3), _brute_force(case, 3), strict=True):
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_parts_of_a_row_are_joined_by_their_log_sum_exp():
    """A prefix that three rows share, as a prefill that is not causal, and each row's own rest, which one lacks."""
    rest = AttentionCase(kv_lens=(40, 0, 130, 7), dtype="float32", return_lse=True)
    q, k_cache, v_cache, page_table, kv_lens = rest.make()
    prefix_pages, prefix_len = page_table[2:3, :2], 32
    sinks = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape[1:3]), jnp.float32)
    q_starts = jnp.asarray([0, 3], jnp.int32)
    prefix = XLA.paged_prefill(
        q, k_cache, v_cache, prefix_pages, jnp.asarray([prefix_len]), q_starts, scale=0.1, causal=False, return_lse=True
    )
    own = XLA.paged_decode(q, k_cache, v_cache, page_table, kv_lens, scale=0.1, return_lse=True)
    out, lse = add_sinks(*merge(*prefix, *own), sinks)
    joined_table = jnp.concatenate([jnp.tile(prefix_pages, (4, 1)), page_table], axis=1)
    joined_table = joined_table.at[3, :-2].set(page_table[3])
    joined_lens = jnp.where(jnp.arange(4) < 3, kv_lens + prefix_len, kv_lens)
    expected = REFERENCE.paged_decode(
        q, k_cache, v_cache, joined_table, joined_lens, scale=0.1, sinks=sinks, return_lse=True
    )
    _assert_close([np.asarray(out), np.asarray(lse)], [np.asarray(x) for x in expected], "float32")


@pytest.mark.parametrize("case", DECODE, ids=_name)
def test_paged_decode(case):
    out = _run(XLA.paged_decode, case)
    _assert_close(out, _run(REFERENCE.paged_decode, case), case.dtype)
    assert not out[0][np.asarray(case.kv_lens) == 0].any(), "a padding row's output is not zero"


@pytest.mark.parametrize("case", PREFILL, ids=_name)
def test_paged_prefill(case):
    assert case.q_lens is not None
    out = _run(XLA.paged_prefill, case)
    _assert_close(out, _run(REFERENCE.paged_prefill, case), case.dtype)
    assert not out[0][sum(case.q_lens) :].any(), "a padding token's output is not zero"


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


@pytest.mark.parametrize("case", threshold_specs.PARITY, ids=_name)
def test_sampling_threshold(case):
    """To the bit: the cases' weights have exact sums."""
    weights, top_k, top_p, min_p = (np.asarray(x) for x in case.make())
    found, expected = (np.asarray(jax.jit(ops.sampling_threshold)(*case.make())) for ops in (XLA, REFERENCE))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    for row, threshold, k, p, least in zip(weights, found, top_k, top_p, min_p, strict=True):
        kept = np.sort(row)[::-1]
        if 0 < k < len(row):
            kept = kept[kept >= kept[k - 1]]
        if p < 1:
            kept = kept[: np.argmax(kept.cumsum() >= p * kept.sum()) + 1]
        np.testing.assert_array_equal(row >= threshold, (row >= kept[-1]) & (row >= least))
