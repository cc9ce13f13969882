"""The state of one constrained sequence, and the masks of many at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import llguidance
import numpy as np
from numpy.typing import NDArray

from sgjax.grammar.messages import is_worn_out, plain_message


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """What every grammar of one model shares.

    Attributes:
      tokenizer: llguidance's; its width is that of the model's logits.
      eos_token_ids: ids that end an output.
      eos_mask: int32 (ceil(V/32),), their bits; read-only.
      executor: threads that fill masks.
    """

    tokenizer: llguidance.LLTokenizer
    eos_token_ids: frozenset[int]
    eos_mask: NDArray[np.int32]
    executor: llguidance.LLExecutor


class Grammar:
    """A compiled grammar: immutable, shared by every sequence that follows it and by threads.

    Attributes:
      worn_out: its lexer's states, which all sequences share, are used up. Matchers that need another one are dead;
        the compiler compiles the grammar anew when it is asked for again.
    """

    def __init__(self, prototype: llguidance.LLMatcher, vocabulary: Vocabulary):
        self._prototype = prototype
        self.vocabulary = vocabulary
        self.worn_out = False

    def matcher(self) -> Matcher:
        """The state of a new sequence, at its start. Costs a copy, not a compile."""
        return Matcher(self._prototype.deep_copy(), self)


class Matcher:
    """How far one sequence has come in its grammar. Used by one thread at a time. Made by `Grammar.matcher`."""

    __slots__ = ("_dead_end", "_grammar", "_inner", "_num_eos", "_num_tokens", "vocabulary")

    def __init__(self, inner: llguidance.LLMatcher, grammar: Grammar):
        self.vocabulary = grammar.vocabulary
        self._grammar = grammar
        self._inner = inner
        self._num_tokens = 0  # accepted, without EOS
        # EOS is counted here: llguidance takes it without counting it once nothing else may follow, so that it could
        # not be rolled back.
        self._num_eos = 0
        self._dead_end = False

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Writes the tokens that may come next.

        Args:
          mask: int32 (ceil(V/32),), C-contiguous; bit i % 32 of word i // 32 is token i. Overwritten. A matcher that is
            closed or dead allows EOS alone.
        """
        if self._only_eos:
            mask[:] = self.vocabulary.eos_mask
            return
        self._inner.unsafe_compute_mask_ptr(_address(mask, ndim=1), mask.nbytes)
        self._check_mask(mask)

    def accept(self, token_id: int) -> bool:
        """Advances by one token, EOS included. False, and no step, when the grammar does not take it."""
        if token_id in self.vocabulary.eos_token_ids and (self._num_eos or self._inner.is_accepting()):
            self._num_eos += 1
            return True
        if self._only_eos or not 0 <= token_id < self.vocabulary.tokenizer.vocab_size:
            return False
        if self._inner.try_consume_tokens([token_id]) != 1:
            return False
        self._num_tokens += 1
        return True

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer itself would write them; does not advance.

        Empty when the next token is open, or when what follows could still be tokenised in another way: of `"name":`
        only that part is given which no continuation changes.
        """
        return [] if self._only_eos else self._inner.compute_ff_tokens()

    def rollback(self, num_tokens: int) -> None:
        """Takes the last tokens back.

        Raises:
          ValueError: fewer were accepted, or the matcher is dead.
        """
        num_eos = min(num_tokens, self._num_eos)
        num_inner = num_tokens - num_eos
        if not 0 <= num_inner <= self._num_tokens:
            raise ValueError(f"cannot take {num_tokens} tokens back of {self._num_tokens + self._num_eos}")
        if num_inner and not self._inner.rollback(num_inner):
            raise ValueError(f"cannot take {num_tokens} tokens back: {self._inner.get_error()}")
        self._num_eos -= num_eos
        self._num_tokens -= num_inner
        if num_inner:
            self._dead_end = False

    @property
    def is_stopped(self) -> bool:
        """Nothing but EOS may follow."""
        return self._only_eos

    @property
    def is_accepting(self) -> bool:
        """The output may end here."""
        return self._num_eos > 0 or self._inner.is_accepting()

    @property
    def error(self) -> str | None:
        """Why the matcher is dead, in words for the user; None while it lives."""
        if self._dead_end:
            return "no token can follow what was generated"
        if not (message := self._inner.get_error()):
            return None
        if is_worn_out(message):
            self._grammar.worn_out = True
        return plain_message(message)

    @property
    def _only_eos(self) -> bool:
        return self._num_eos > 0 or self._dead_end or self._inner.is_stopped()

    def _check_mask(self, mask: NDArray[np.int32]) -> None:
        """A mask without a token would make the sampler choose among nothing."""
        if not mask.any():
            self._dead_end = True
            mask[:] = self.vocabulary.eos_mask


def fill_masks(rows: Sequence[tuple[Matcher, int]], masks: NDArray[np.int32]) -> None:
    """`Matcher.fill` of many sequences, in parallel threads. The GIL is released meanwhile.

    Args:
      rows: matchers of one `GrammarCompiler`, each once, with their row in `masks`.
      masks: int32 (S, ceil(V/32)), C-contiguous. Rows not named are left alone.
    """
    address = _address(masks, ndim=2)
    open_rows = []
    for matcher, row in rows:
        if matcher._only_eos:
            masks[row] = matcher.vocabulary.eos_mask
        else:
            open_rows.append((matcher, row))
    if not open_rows:
        return
    executor = open_rows[0][0].vocabulary.executor
    inner = [(matcher._inner, row) for matcher, row in open_rows]
    executor.unsafe_compute_mask_ptr(inner, address, masks.strides[0], len(masks))
    for matcher, row in open_rows:
        matcher._check_mask(masks[row])


def _address(mask: NDArray[np.int32], ndim: int) -> int:
    """llguidance writes through a pointer and cannot check what lies there."""
    if mask.dtype != np.int32 or mask.ndim != ndim or not mask.flags.c_contiguous or not mask.flags.writeable:
        raise ValueError(f"a mask must be int32, {ndim}-dimensional, C-contiguous and writeable")
    return mask.ctypes.data
