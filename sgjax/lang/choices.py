"""How `select` decides between choices whose tokens' log-probabilities are known. The methods are SGLang's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TokenLogprob = tuple[float | None, int, str | None]  # log-probability, token id, the token's text


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceScores:
    """What the model says about each choice after one prompt.

    Attributes:
      input_token_logprobs: per choice, its tokens.
      unconditional_token_logprobs: the same tokens with nothing before them, when a method asks for it.
    """

    input_token_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    unconditional_token_logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = None

    def means(self) -> list[float]:
        return [float(np.mean(_known(tokens))) for tokens in self.input_token_logprobs]


@dataclasses.dataclass(frozen=True, slots=True)
class ChoicesDecision:
    """The choice, and what it was based on (SGLang's keys)."""

    decision: str
    meta_info: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ChoicesMethod:
    """A way to decide.

    Attributes:
      pick: the index of the best choice, and what to add to the meta information.
      requires_unconditional_logprobs: fill `ChoiceScores.unconditional_token_logprobs`.
    """

    name: str
    pick: Callable[[ChoiceScores], tuple[int, dict[str, Any]]]
    requires_unconditional_logprobs: bool = False

    def __call__(self, choices: Sequence[str], scores: ChoiceScores) -> ChoicesDecision:
        index, details = self.pick(scores)
        meta = {
            "normalized_prompt_logprobs": scores.means(),
            "input_token_logprobs": [list(tokens) for tokens in scores.input_token_logprobs],
            "output_token_logprobs": [[] for _ in choices],
            **details,
        }
        return ChoicesDecision(choices[index], meta)


def _known(tokens: Sequence[TokenLogprob]) -> list[float]:
    """The first token of a prompt has no log-probability, because nothing predicts it.

    Raises:
      ValueError: no token is left.
    """
    known = [logprob for logprob, _, _ in tokens if logprob is not None]
    if not known:
        raise ValueError("a choice cannot be scored at the very start of a text: put something before it")
    return known


def _by_mean(scores: ChoiceScores) -> tuple[int, dict[str, Any]]:
    return int(np.argmax(scores.means())), {}


def _greedy(scores: ChoiceScores) -> tuple[int, dict[str, Any]]:
    rows = [_known(tokens) for tokens in scores.input_token_logprobs]
    width = max(map(len, rows))
    # A choice that ends goes on with its mean, so that it can be compared with a longer one that begins with it.
    matrix = np.array([row + [float(np.mean(row))] * (width - len(row)) for row in rows])
    remaining = np.arange(len(rows))
    for column in matrix.T:
        best = column[remaining].max()
        remaining = remaining[column[remaining] == best]
        if len(remaining) == 1:
            break
    return int(remaining[0]), {"greedy_logprob_matrix": matrix.tolist()}


def _by_unconditional(scores: ChoiceScores) -> tuple[int, dict[str, Any]]:
    assert scores.unconditional_token_logprobs is not None, "the backend gave no unconditional log-probabilities"
    normalized = []
    for tokens, alone in zip(scores.input_token_logprobs, scores.unconditional_token_logprobs, strict=True):
        pairs = [(given[0], free[0] or 0.0) for given, free in zip(tokens, alone, strict=True) if given[0] is not None]
        _known(tokens)
        normalized.append(float(np.mean([given - free for given, free in pairs])))
    details = {
        "normalized_unconditional_prompt_logprobs": normalized,
        "unconditional_token_logprobs": [list(tokens) for tokens in scores.unconditional_token_logprobs],
    }
    return int(np.argmax(normalized)), details


token_length_normalized = ChoicesMethod("token_length_normalized", _by_mean)
"""The highest mean log-probability of a choice's tokens. The default."""

greedy_token_selection = ChoicesMethod("greedy_token_selection", _greedy)
"""The best first token; among equals the best second, and so on. A choice that ends goes on with its mean."""

unconditional_likelihood_normalized = ChoicesMethod(
    "unconditional_likelihood_normalized", _by_unconditional, requires_unconditional_logprobs=True
)
"""The highest mean of log-probabilities less what the same tokens have with nothing before them (EleutherAI,
"Multiple Choice Normalization in LM Evaluation", 2021)."""

METHODS = {
    method.name: method
    for method in (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)
}
