"""Several generations from one request to an API, which bills and waits per request.

The model is asked for more than the first generation needs, and what it writes is matched with the program: constants
must come as the program has them, a generation reaches to its stop string. Like SGLang's `num_api_spec_tokens`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from sgjax.lang import ir
from sgjax.lang.backends.base import Completion

MAX_TRIES = 3

Generate = Callable[[ir.Sampling], list[Completion]]


class CompletionSpeculation:
    """For models that complete text: what they wrote beyond a generation is kept for the next."""

    def __init__(self, num_tokens: int):
        self._num_tokens = num_tokens
        self._ahead = ""

    def consume(self, text: str) -> None:
        """The program appends a constant: was it foreseen?"""
        self._ahead = self._ahead[len(text) :] if self._ahead.startswith(text) else ""

    def generate(self, sampling: ir.Sampling, generate: Generate) -> list[Completion]:
        if (sampling.n or 1) > 1:
            return generate(sampling)
        meta_info: dict[str, Any] = {}
        if _stop_position(self._ahead, sampling) is None:
            longer = max(self._num_tokens, sampling.max_new_tokens or 0)
            (completion,) = generate(dataclasses.replace(sampling, max_new_tokens=longer, stop=None))
            self._ahead, meta_info = completion.text, completion.meta_info
        end = _stop_position(self._ahead, sampling)
        end = len(self._ahead) if end is None else end
        text, self._ahead = self._ahead[:end], self._ahead[end:]
        return [Completion(text, meta_info)]


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """A named part of an answer."""

    name: str | None
    completion: Completion


class ChatSpeculation:
    """For chat models, which cannot go on with a turn that has begun: a whole turn is one request."""

    def __init__(self, num_tokens: int):
        self._num_tokens = num_tokens
        self._pieces: list[str | ir.Gen] = []

    def add(self, piece: str | ir.Gen) -> None:
        """The assistant's turn goes on."""
        self._pieces.append(piece)

    def finish(self, generate: Generate) -> list[str | Generated]:
        """The turn is complete: asks for it.

        Raises:
          RuntimeError: the model did not keep to the program's constants, several times.
        """
        pieces, self._pieces = self._pieces, []
        gens = [piece for piece in pieces if isinstance(piece, ir.Gen)]
        if not gens:
            return list(pieces)  # type: ignore[arg-type]
        longer = max(self._num_tokens, *(gen.sampling.max_new_tokens or 0 for gen in gens))
        # A stop string may stand in what comes before its generation, and would end the turn there.
        stop = gens[0].sampling.stop if len(pieces) == 1 else None
        sampling = dataclasses.replace(gens[0].sampling, max_new_tokens=longer, n=1, stop=stop)
        answer = ""
        for _ in range(MAX_TRIES):
            (completion,) = generate(sampling)
            answer = completion.text
            if (matched := _match(pieces, completion)) is not None:
                return matched
        raise RuntimeError(f"the model's answer does not follow the program's turn: {answer!r}")


def _match(pieces: list[str | ir.Gen], completion: Completion) -> list[str | Generated] | None:
    """The answer divided along the turn's pieces; None where a constant is missing."""
    rest = completion.text
    found: list[str | Generated] = []
    for index, piece in enumerate(pieces):
        following = pieces[index + 1] if index + 1 < len(pieces) else None
        if isinstance(piece, str):
            # Models seldom repeat the spaces at the very start of a turn.
            text = piece.lstrip() if index == 0 else piece
            if not rest.startswith(text):
                return None
            rest = rest[len(text) :]
            found.append(piece)
            continue
        end = _stop_position(rest, piece.sampling)
        if isinstance(following, str):
            at = rest.find(following)
            if at < 0:
                return None
            end = at if end is None else min(end, at)
        end = len(rest) if end is None else end
        found.append(Generated(piece.name, Completion(rest[:end], completion.meta_info)))
        rest = rest[end:]
    return found


def _stop_position(text: str, sampling: ir.Sampling) -> int | None:
    """Where the first stop string or expression begins."""
    stops = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())
    patterns = [sampling.stop_regex] if isinstance(sampling.stop_regex, str) else list(sampling.stop_regex or ())
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    found += [match.start() for pattern in patterns if (match := re.search(pattern, text))]
    return min(found, default=None)
