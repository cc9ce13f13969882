"""From logits to tokens and log-probabilities: pure functions for use inside a jitted step.

Every setting is an array with one entry per row, so one compiled function serves any mixture of requests. All
randomness comes from a counter-based generator keyed by (seed, position) of the row: a draw never depends on the
neighbours, the batch size or the step at which it happens.

Filters need no sort: an operation of `sgjax.kernels` finds the least weight that they keep. A draw looks at the
vocabulary in blocks of `_BLOCK` ids: it picks a block, then a token within it, and so needs two random numbers a row
instead of one a token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sgjax.kernels.sampling_threshold.api import SamplingThreshold
from sgjax.kernels.sampling_threshold.xla import sampling_threshold

_BLOCK = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingRows:
    """How each of S rows chooses its token.

    Attributes:
      temperature: float32 (S,); 0 is greedy.
      top_k: int32 (S,); below 1, or the vocabulary's size and above, is off; 1 is greedy.
      top_p: float32 (S,) in (0, 1]; 1 is off.
      min_p: float32 (S,) in [0, 1]; 0 is off.
      seed: uint32 (S, 2), the two halves of the request's seed.
      position: int32 (S,), the sequence position of the token to be drawn.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    position: jax.Array


def sample(logits: jax.Array, rows: SamplingRows, threshold: SamplingThreshold = sampling_threshold) -> jax.Array:
    """Chooses a token per row.

    The order is SGLang's: temperature, top_k, top_p of what top_k kept (renormalised), min_p relative to the most
    likely token. Tokens that tie with the last one kept are kept too. Masses are float32 sums.

    Args:
      logits: float32 (S, V); -inf forbids a token. A row of nothing but -inf gives token 0.
      threshold: what finds the least weight that the filters keep.

    Returns:
      int32 (S,). A greedy row's is exactly the argmax, the lowest id on ties.
    """
    greedy = (rows.temperature <= 0) | (rows.top_k == 1)
    best = argmax(logits)

    def draw() -> jax.Array:
        weights = _weights(logits, jnp.where(greedy, 1.0, rows.temperature))
        filters = jnp.where(greedy, 0, rows.top_k), jnp.where(greedy, 1.0, rows.top_p), rows.min_p
        kept = jnp.where(weights >= threshold(weights, *filters)[:, None], weights, 0)
        return jnp.where(greedy, best, _draw(kept, _uniforms(rows)))

    # Penalised rows may all be greedy. On a GPU a branch would cost the host a wait for the device.
    return lax.platform_dependent(cpu=lambda: lax.cond(greedy.all(), lambda: best, draw), default=draw)


def argmax(x: jax.Array) -> jax.Array:
    """Index of the largest element of each row of (S, V), the lowest on ties; int32 (S,).

    By way of block maxima: on a CPU eight times as fast as `jnp.argmax`.
    """
    blocks = _blocks(x, -jnp.inf)
    block = jnp.argmax(blocks.max(-1), -1)
    return (block * _BLOCK + jnp.argmax(_take(blocks, block), -1)).astype(jnp.int32)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each row of (S, V), in descending order, lowest index first on ties, and their indices.

    The k blocks with the largest maxima hold them all. Searched in ascending order they also settle ties as
    `lax.top_k` does, which takes four times as long on a CPU.
    """
    blocks = _blocks(x, -jnp.inf)
    if k >= blocks.shape[1] or k == 0:
        return lax.top_k(x, k)
    block = jnp.sort(lax.top_k(blocks.max(-1), k)[1], -1)
    candidates = jnp.take_along_axis(blocks, block[:, :, None], 1).reshape(len(x), -1)
    values, at = lax.top_k(candidates, k)
    return values, jnp.take_along_axis(block, at // _BLOCK, 1) * _BLOCK + at % _BLOCK


def _blocks(x: jax.Array, fill: float) -> jax.Array:
    """(S, V) as (S, V / _BLOCK, _BLOCK), the last block filled up."""
    padding = -x.shape[-1] % _BLOCK
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding)), constant_values=fill)
    return x.reshape(len(x), -1, _BLOCK)


def _take(blocks: jax.Array, block: jax.Array) -> jax.Array:
    """One block of each row: (S, n, _BLOCK), (S,) -> (S, _BLOCK)."""
    return jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]


def _weights(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Probabilities relative to the most likely token's, which is 1. Shifted first, lest a temperature overflow."""
    shifted = logits - logits.max(-1, keepdims=True)
    return jnp.exp(shifted / temperature[:, None])


def _uniforms(rows: SamplingRows) -> jax.Array:
    """Two numbers in [0, 1) per row, float32 (S, 2), from (seed, position) alone."""

    def one(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, position), (2,))

    return jax.vmap(one)(rows.seed, rows.position)


def _draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draws an index with probability proportional to its weight: first its block, then its place there."""
    blocks = _blocks(weights, 0)
    block = _invert(blocks.sum(-1), uniforms[:, 0])
    return (block * _BLOCK + _invert(_take(blocks, block), uniforms[:, 1])).astype(jnp.int32)


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index at which the running sum of a row exceeds its uniform share. Never one of weight 0."""
    cumulative = jnp.cumsum(weights, -1)
    hit = (cumulative > (uniform * cumulative[:, -1])[:, None]) & (weights > 0)
    return jnp.where(hit.any(-1), jnp.argmax(hit, -1), jnp.argmax(weights, -1))


def apply_mask(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits (S, V) with -inf where a bit is 0. mask int32 (S, ceil(V/32)): token t is bit t % 32 of word t // 32."""
    bits = (mask[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return jnp.where(bits.reshape(len(mask), -1)[:, : logits.shape[1]] != 0, logits, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PenaltyRows:
    """What is done to each row's logits first. Rows without a setting hold its neutral value.

    Attributes:
      frequency, presence: float32 (S,); 0 is neutral. repetition: float32 (S,); 1 is neutral.
      bias_ids, bias_values: int32 and float32 (S, B), padded with the vocabulary's size.
      blocked_ids: int32 (S, E), padded likewise: forbidden at this step (end-of-sequence before min_new_tokens).
    """

    frequency: jax.Array
    presence: jax.Array
    repetition: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    blocked_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """What each running sequence has seen, kept on the device by slot.

    Attributes:
      output_counts: int16 (slots, V). in_prompt: bool (slots, V).
    """

    output_counts: jax.Array
    in_prompt: jax.Array

    @classmethod
    def zeros(cls, num_slots: int, vocab_size: int) -> TokenCounts:
        shape = (num_slots, vocab_size)
        return cls(jnp.zeros(shape, jnp.int16), jnp.zeros(shape, bool))

    def rows(self, slots: jax.Array) -> TokenCounts:
        """The counts of a batch's rows, (S, V); a slot out of range (a padding row) gives another's."""
        return TokenCounts(*(x.at[slots].get(mode="clip") for x in (self.output_counts, self.in_prompt)))

    def add(self, slots: jax.Array, tokens: jax.Array) -> TokenCounts:
        """Counts one sampled token per row; slots out of range (padding rows) are dropped. Donate `self`."""
        counts = self.output_counts.at[slots, tokens].add(1, mode="drop")
        return dataclasses.replace(self, output_counts=counts)

    def set_slot(self, slot: jax.Array, output_counts: jax.Array, in_prompt: jax.Array) -> TokenCounts:
        """Starts a sequence in a slot, with what `count_tokens` made of its prompt and output. Donate `self`."""
        return TokenCounts(self.output_counts.at[slot].set(output_counts), self.in_prompt.at[slot].set(in_prompt))


def count_tokens(
    prompt_ids: Sequence[int], output_ids: Sequence[int], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A slot's state on the host: int16 counts of the output and a bool mask of the prompt, (V,) each.

    Made here and sent whole, so that no program is compiled per prompt length.
    """
    counts = np.bincount(np.asarray(output_ids, np.int64), minlength=vocab_size).astype(np.int16)
    in_prompt = np.zeros(vocab_size, bool)
    in_prompt[np.asarray(prompt_ids, np.int64)] = True
    return counts, in_prompt


def adjust(logits: jax.Array, penalties: PenaltyRows, counts: TokenCounts) -> jax.Array:
    """Applies penalties, bias and blocked ids, in this order, to logits (S, V) with the counts of the same rows.

    Repetition divides positive and multiplies negative logits of tokens in prompt or output (CTRL, arXiv:1909.05858,
    as in transformers). Frequency and presence subtract, per occurrence and once, for tokens in the output (OpenAI's).
    """
    seen = counts.in_prompt | (counts.output_counts > 0)
    repetition = penalties.repetition[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits -= penalties.frequency[:, None] * counts.output_counts.astype(logits.dtype)
    logits -= penalties.presence[:, None] * (counts.output_counts > 0)
    row = jnp.arange(len(logits))[:, None]
    logits = logits.at[row, penalties.bias_ids].add(penalties.bias_values, mode="drop")
    return logits.at[row, penalties.blocked_ids].set(-jnp.inf, mode="drop")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logprobs:
    """Log-probabilities at R places: chosen (R,), top_values and top_ids (R, num_top) descending, asked (R, A)."""

    chosen: jax.Array
    top_values: jax.Array
    top_ids: jax.Array
    asked: jax.Array


def token_logprobs(logits: jax.Array, tokens: jax.Array, asked_ids: jax.Array, num_top: int) -> Logprobs:
    """Log-probabilities of the chosen tokens, the best `num_top`, and the ids asked for.

    Nothing of the logits' size is made: only one normaliser per row.

    Args:
      logits: float32 (R, V), as the model gave them. tokens: int32 (R,). asked_ids: int32 (R, A), A may be 0.
      num_top: static, may be 0.
    """
    normaliser = jax.nn.logsumexp(logits, -1)
    row = jnp.arange(len(logits))
    top_values, top_ids = top_k(logits, num_top)
    return Logprobs(
        chosen=logits[row, tokens] - normaliser,
        top_values=top_values - normaliser[:, None],
        top_ids=top_ids,
        asked=logits[row[:, None], asked_ids] - normaliser[:, None],
    )


def prompt_logprobs(
    hidden: jax.Array,
    logits_fn: Callable[[jax.Array], jax.Array],
    target_ids: jax.Array,
    asked_ids: jax.Array,
    num_top: int,
    *,
    block_len: int = 64,
) -> Logprobs:
    """`token_logprobs` for every token of a prompt, in a loop over blocks: T x V logits are never in memory at once.

    Args:
      hidden: (T, D). logits_fn: (block_len, D) -> float32 (block_len, V).
      target_ids: int32 (T,), the token after each. asked_ids: int32 (T, A).
    """
    num_tokens = len(hidden)
    num_blocks = math.ceil(num_tokens / block_len)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, num_blocks * block_len - num_tokens), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(num_blocks, block_len, *x.shape[1:])

    blocks = (split(hidden), split(target_ids), split(asked_ids))
    result = lax.map(lambda block: token_logprobs(logits_fn(block[0]), block[1], block[2], num_top), blocks)
    return jax.tree.map(lambda x: x.reshape(num_blocks * block_len, *x.shape[2:])[:num_tokens], result)
