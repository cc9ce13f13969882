"""The sampling layer against plain numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgjax.kernels.sampling_threshold.xla import sampling_threshold
from sgjax.layers import sampling

VOCAB = 20_011  # more than the candidate blocks hold, and no multiple of their length
MAX_ROWS = 8
SMALLEST = 1e-30  # relative weights below are left out of comparisons: float32 has none below 1e-38


def make_rows(n: int, *, seeds=None, positions=None, **values) -> sampling.SamplingRows:
    """Rows from scalars or lists; seed i by default."""
    neutral = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    kinds = {"top_k": np.int32}
    columns = {
        name: jnp.asarray(np.broadcast_to(values.get(name, default), n), kinds.get(name, np.float32))
        for name, default in neutral.items()
    }
    seeds = np.arange(n) if seeds is None else np.asarray(seeds)
    positions = np.zeros(n) if positions is None else np.asarray(positions)
    pairs = np.stack([seeds & 0xFFFFFFFF, seeds >> 32], -1).astype(np.uint32)
    return sampling.SamplingRows(seed=jnp.asarray(pairs), position=jnp.asarray(positions, jnp.int32), **columns)


sample = jax.jit(sampling.sample)


def many_draws(logits: np.ndarray, num_draws: int, **values) -> np.ndarray:
    """Draws of one distribution, each with its own seed or position."""
    rows = make_rows(num_draws, seeds=np.arange(num_draws) % 97, positions=np.arange(num_draws), **values)
    return np.asarray(sample(jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (num_draws, len(logits))), rows))


def kept_by_numpy(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The ids that the filters keep: a sort in float64, then ties with the last one."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.sort(weights)[::-1]
    floor = order[top_k - 1] if 0 < top_k < len(order) else 0.0
    order = order[order >= floor]
    if top_p < 1:
        cumulative = np.cumsum(order)
        floor = order[np.searchsorted(cumulative, top_p * cumulative[-1])]
    return np.flatnonzero((weights >= floor) & (weights >= min_p) & (weights > SMALLEST))


@jax.jit
def kept_mask(logits: jax.Array, rows: sampling.SamplingRows) -> jax.Array:
    weights = sampling._weights(logits, rows.temperature)
    threshold = sampling_threshold(weights, rows.top_k, rows.top_p, rows.min_p)
    return (weights >= threshold[:, None]) & (weights > SMALLEST)


def kept_by_layer(logits: np.ndarray, rows: sampling.SamplingRows) -> list[np.ndarray]:
    return [np.flatnonzero(row) for row in np.asarray(kept_mask(jnp.asarray(logits, jnp.float32), rows))]


@pytest.mark.parametrize("vocab", [5, 31, 32, 33, 1000, VOCAB])
def test_greedy_is_argmax_and_takes_the_lowest_id_on_ties(vocab):
    logits = np.random.default_rng(vocab).integers(-4, 4, (MAX_ROWS, vocab)).astype(np.float32)
    logits[0] = -np.inf
    expected = logits.argmax(-1)
    np.testing.assert_array_equal(sample(logits, make_rows(MAX_ROWS, temperature=0)), expected)
    np.testing.assert_array_equal(sample(logits, make_rows(MAX_ROWS, top_k=1)), expected)
    mixed = make_rows(MAX_ROWS, temperature=[0, 1] * (MAX_ROWS // 2))
    np.testing.assert_array_equal(np.asarray(sample(logits, mixed))[::2], expected[::2])


@pytest.mark.parametrize("vocab", [20, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(vocab, temperature):
    logits = np.random.default_rng(0).normal(size=vocab).astype(np.float32)
    num_draws = 20_000
    seen = np.bincount(many_draws(logits, num_draws, temperature=temperature), minlength=vocab)
    p = np.exp(logits.astype(np.float64) / temperature)
    expected = num_draws * p / p.sum()
    chi_square = ((seen - expected) ** 2 / expected).sum()
    degrees = vocab - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)


def test_filtered_draws_follow_the_renormalised_distribution():
    logits = np.linspace(2, -2, 50, dtype=np.float32)
    seen = np.bincount(many_draws(logits, 20_000, top_k=10, top_p=0.8), minlength=50)
    kept = kept_by_numpy(logits, 1.0, 10, 0.8, 0.0)
    np.testing.assert_array_equal(np.flatnonzero(seen), kept)
    p = np.exp(logits[kept])
    expected = 20_000 * p / p.sum()
    assert ((seen[kept] - expected) ** 2 / expected).sum() < len(kept) + 4 * np.sqrt(2 * len(kept))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 0, 2, 50, 300, 10_000, VOCAB, VOCAB + 1]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_filters_keep_what_a_sort_keeps(seed, spread, temperature, top_k, top_p, min_p):
    logits = (np.random.default_rng(seed).normal(size=(2, VOCAB)) * spread).astype(np.float32)
    settings_ = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for row, kept in zip(logits, kept_by_layer(logits, make_rows(2, **settings_)), strict=True):
        expected = kept_by_numpy(row, **settings_)
        # Only rounding may move a border: of a float32 weight by one token, of a float32 mass by as much mass.
        differing = np.setxor1d(kept, expected)
        weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
        mass_error = 1e-5 * weights[expected].sum() / top_p if top_p < 1 else 0.0
        assert weights[differing].sum() <= 2 * weights[expected].min() + mass_error


def test_each_row_is_filtered_on_its_own():
    """More rows than are searched at once, of all kinds: settled early, late, and not filtered at all."""
    n = 24
    rng = np.random.default_rng(6)
    logits = (rng.normal(size=(n, VOCAB)) * rng.choice([0.5, 2.0, 8.0], (n, 1))).astype(np.float32)
    top_k, top_p = rng.choice([-1, 5, 9000], n), rng.choice([0.5, 0.9, 1.0], n)
    for i, kept in enumerate(kept_by_layer(logits, make_rows(n, top_k=top_k, top_p=top_p))):
        expected = kept_by_numpy(logits[i], 1.0, int(top_k[i]), float(np.float32(top_p[i])), 0.0)
        assert len(np.setxor1d(kept, expected)) <= 1 + 1e-4 * len(expected)


def test_top_k_keeps_exactly_k_without_ties_and_ties_with_the_last():
    logits = np.random.default_rng(1).permutation(VOCAB).astype(np.float32)[None] / 1000
    for k in (2, 7, 500, 19_000):
        (kept,) = kept_by_layer(logits, make_rows(1, top_k=k))
        np.testing.assert_array_equal(np.sort(kept), np.sort(np.argsort(logits[0])[-k:]))
    ties = np.array([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    assert kept_by_layer(ties, make_rows(1, top_k=2))[0].tolist() == [0, 2, 3, 4]


def test_top_p_keeps_the_token_that_crosses_the_border():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    for top_p, expected in ((0.4, [0]), (0.6, [0, 1]), (0.85, [0, 1, 2]), (0.97, [0, 1, 2, 3]), (1e-6, [0])):
        assert kept_by_layer(logits, make_rows(1, top_p=top_p))[0].tolist() == expected
    # of what top_k kept: 0.5 of 0.8 is 0.625
    assert kept_by_layer(logits, make_rows(1, top_k=2, top_p=0.6))[0].tolist() == [0]


def test_min_p_is_relative_to_the_most_likely():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    assert kept_by_layer(logits, make_rows(1, min_p=0.29))[0].tolist() == [0, 1, 2]
    assert kept_by_layer(logits, make_rows(1, min_p=1.0))[0].tolist() == [0]


def test_a_draw_depends_on_seed_and_position_alone():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(MAX_ROWS, VOCAB)).astype(np.float32)
    values = {
        "temperature": [1.0, 0.0, 0.7, 1.3, 1.0, 2.0, 1.0, 1.0],
        "top_k": [-1, -1, 50, -1, 400, -1, 3, -1],
        "top_p": [1.0, 0.5, 0.9, 0.99, 1.0, 0.3, 1.0, 1.0],
        "min_p": [0, 0, 0, 0.1, 0, 0, 0, 0],
        "seeds": [0, 1, 2**40, 2**40 + 1, 7, 7, 8, 9],
        "positions": [3, 3, 3, 3, 10, 11, 12, 13],
    }
    together = np.asarray(sample(logits, make_rows(MAX_ROWS, **values)))
    for i in range(MAX_ROWS):
        alone = make_rows(1, **{name: [column[i]] for name, column in values.items()})
        assert sample(logits[i : i + 1], alone)[0] == together[i]
    shuffled = rng.permutation(MAX_ROWS)
    other = make_rows(MAX_ROWS, **{name: [column[i] for i in shuffled] for name, column in values.items()})
    np.testing.assert_array_equal(sample(logits[shuffled], other), together[shuffled])


def test_seed_halves_and_positions_all_matter():
    flat = np.zeros((4, VOCAB), np.float32)
    drawn = sample(flat, make_rows(4, seeds=[5, 5 + 2**32, 6, 5], positions=[0, 0, 0, 1]))
    assert len(set(np.asarray(drawn).tolist())) == 4


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 100.0])
def test_extreme_temperatures(temperature):
    logits = np.random.default_rng(3).normal(size=(MAX_ROWS, 1000)).astype(np.float32) * 1e4
    drawn = np.asarray(sample(logits, make_rows(MAX_ROWS, temperature=temperature)))
    if temperature < 1:
        np.testing.assert_array_equal(drawn, logits.argmax(-1))
    assert ((drawn >= 0) & (drawn < 1000)).all()


def test_forbidden_tokens_are_never_drawn():
    logits = np.full((MAX_ROWS, VOCAB), -np.inf, np.float32)
    allowed = np.array([0, 31, 32, 777, VOCAB - 1])
    logits[:, allowed] = 0
    for position in range(30):
        drawn = sample(logits, make_rows(MAX_ROWS, positions=[position] * MAX_ROWS, top_p=0.999))
        assert np.isin(drawn, allowed).all()
    nothing = sample(np.full((2, 100), -np.inf, np.float32), make_rows(2, temperature=[0, 1]))
    np.testing.assert_array_equal(nothing, [0, 0])


def test_one_trace_serves_every_mixture():
    traces = []
    step = jax.jit(lambda x, rows: (traces.append(1), sampling.sample(x, rows))[1])
    logits = np.zeros((4, 500), np.float32)
    for values in ({"temperature": 0}, {}, {"top_k": [1, 2, 3, -1]}, {"top_p": 0.5, "min_p": [0, 0.1, 0.2, 0.3]}):
        step(logits, make_rows(4, **values))
    assert len(traces) == 1


@pytest.mark.parametrize("vocab", [33, 1000])
@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_top_k_of_the_layer_equals_jax_top_k(vocab, k):
    x = np.random.default_rng(k).integers(0, 9, (MAX_ROWS, vocab)).astype(np.float32)
    for found, expected in zip(sampling.top_k(jnp.asarray(x), k), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_penalties_match_a_loop():
    rng = np.random.default_rng(4)
    vocab, n = 60, 4
    prompts = [rng.integers(0, vocab, 7).tolist() for _ in range(n)]
    outputs = [rng.integers(0, vocab, 9).tolist() for _ in range(n)]
    frequency, presence, repetition = rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)
    bias = [{3: 5.0, 4: -2.0}, {}, {59: 1.0}, {0: -100.0}]
    blocked = [[1, 2], [], [59], []]
    logits = rng.normal(size=(n, vocab)).astype(np.float32)

    counts = sampling.TokenCounts.zeros(n + 1, vocab)
    slots = [2, 0, 4, 1]
    for slot, prompt, output in zip(slots, prompts, outputs, strict=True):
        counts = counts.set_slot(jnp.int32(slot), *sampling.count_tokens(prompt, output[:-1], vocab))
    last = jnp.asarray([output[-1] for output in outputs])
    counts = counts.add(jnp.asarray(slots), last).add(jnp.asarray([n + 1, n + 7]), last[:2])  # the second: padding

    def padded(lists, fill, kind):
        return jnp.asarray([[*x, *[fill] * (3 - len(x))] for x in lists], kind)

    rows = sampling.PenaltyRows(
        *(jnp.asarray(x, jnp.float32) for x in (frequency, presence, repetition)),
        bias_ids=padded(bias, vocab, jnp.int32),
        bias_values=padded([b.values() for b in bias], 0, jnp.float32),
        blocked_ids=padded(blocked, vocab, jnp.int32),
    )
    adjusted = jax.jit(sampling.adjust)(logits, rows, counts.rows(jnp.asarray(slots)))

    expected = logits.astype(np.float64)
    for i in range(n):
        for token in set(prompts[i] + outputs[i]):
            expected[i, token] *= 1 / repetition[i] if expected[i, token] > 0 else repetition[i]
        for token in set(outputs[i]):
            expected[i, token] -= frequency[i] * outputs[i].count(token) + presence[i]
        for token, value in bias[i].items():
            expected[i, token] += value
        expected[i, blocked[i]] = -np.inf
    np.testing.assert_allclose(adjusted, expected, rtol=1e-5, atol=1e-5)


def test_a_slot_starts_afresh():
    counts = sampling.TokenCounts.zeros(2, 10).add(jnp.asarray([0, 1]), jnp.asarray([3, 3]))
    counts = counts.set_slot(jnp.int32(0), *sampling.count_tokens([1], [], 10))
    assert counts.output_counts.sum(-1).tolist() == [0, 1]
    assert counts.in_prompt[0].tolist() == [False, True, *[False] * 8]


def test_logprobs_match_log_softmax():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(6, 1000)).astype(np.float32) * 5
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    tokens, asked = rng.integers(0, 1000, 6), rng.integers(0, 1000, (6, 3))
    found = sampling.token_logprobs(*map(jnp.asarray, (logits, tokens, asked)), num_top=4)
    rows = np.arange(6)
    np.testing.assert_allclose(found.chosen, expected[rows, tokens], atol=1e-5)
    np.testing.assert_array_equal(found.top_ids, np.argsort(-expected, -1)[:, :4])
    np.testing.assert_allclose(found.top_values, -np.sort(-expected, -1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(found.asked, np.take_along_axis(expected, asked, 1), atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 8, 21])
def test_prompt_logprobs_equal_those_of_all_at_once(num_tokens):
    rng = np.random.default_rng(num_tokens)
    hidden = jnp.asarray(rng.normal(size=(num_tokens, 16)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(300, 16)), jnp.float32)
    targets, asked = (jnp.asarray(rng.integers(0, 300, shape)) for shape in (num_tokens, (num_tokens, 2)))
    found = sampling.prompt_logprobs(hidden, lambda h: h @ head.T, targets, asked, 3, block_len=8)
    expected = sampling.token_logprobs(hidden @ head.T, targets, asked, 3)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_prompt_logprobs_never_hold_all_logits():
    num_tokens, vocab = 1024, 4096
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((num_tokens, 64), jnp.float32),
            ((vocab, 64), jnp.float32),
            ((num_tokens,), jnp.int32),
            ((num_tokens, 0), jnp.int32),
        )
    ]
    step = jax.jit(lambda h, w, t, a: sampling.prompt_logprobs(h, lambda block: block @ w.T, t, a, 2))
    memory = step.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < num_tokens * vocab * 4 / 4


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100])
def test_apply_mask(vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(size=(5, vocab_size)).astype(np.float32)
    allowed = rng.random((5, vocab_size)) < 0.5
    padded = np.zeros((5, -(-vocab_size // 32) * 32), bool)
    padded[:, :vocab_size] = allowed
    mask = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    np.testing.assert_array_equal(sampling.apply_mask(logits, mask), np.where(allowed, logits, -np.inf))
