"""A backend that says what it is told to."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sgjax.lang.backends.base import Completion
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat
from sgjax.lang.choices import ChoiceScores, ChoicesDecision, ChoicesMethod
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

Answer = Callable[[Prompt, Sampling], str]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that the fake has seen."""

    kind: str
    prompt: Prompt
    sampling: Sampling | None = None
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.prompt.text


class FakeBackend:
    """Answers by a function of the prompt, or from a list; every choice's log-probability is given by `scores`.

    Generations wait while `gate` is clear.
    """

    def __init__(
        self,
        answer: Answer | Sequence[str] = ("ok",),
        *,
        scores: dict[str, list[float]] | None = None,
        chat_format: ChatFormat = FIXED_FORMATS["chatml"],
        is_chat_model: bool = False,
    ):
        self.chat_format = chat_format
        self.is_chat_model = is_chat_model
        self.has_prefix_cache = not is_chat_model
        self.asked: list[Asked] = []
        self.gate = threading.Event()
        self.gate.set()
        self.num_flushes = 0
        self._answer = answer
        self._scores = scores or {}
        self._lock = threading.Lock()
        self._num_answers = 0

    def of_kind(self, kind: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.kind == kind]

    def _note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)

    def _next(self, prompt: Prompt, sampling: Sampling) -> str:
        assert self.gate.wait(10)
        if callable(self._answer):
            return self._answer(prompt, sampling)
        with self._lock:
            self._num_answers += 1
            return self._answer[(self._num_answers - 1) % len(self._answer)]

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        self._note(Asked("generate", prompt, sampling))
        texts = [self._next(prompt, sampling) for _ in range(sampling.n or 1)]
        return [Completion(text, _meta(prompt, text)) for text in texts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        self._note(Asked("stream", prompt, sampling))
        text = self._next(prompt, sampling)
        for end in range(1, len(text) + 1):
            yield Completion(text[:end], _meta(prompt, text[:end]))

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        self._note(Asked("select", prompt, choices=tuple(choices)))
        tokens = tuple(tuple((lp, i, None) for i, lp in enumerate(self._scores[choice])) for choice in choices)
        return method(choices, ChoiceScores(tokens))

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        self._note(Asked("prefill", prompt))
        return _meta(prompt, "")

    def flush_cache(self) -> None:
        self.num_flushes += 1

    def get_server_info(self) -> dict[str, Any]:
        return {"version": "fake"}


def _meta(prompt: Prompt, text: str) -> dict[str, Any]:
    return {
        "prompt_tokens": len(prompt.text),
        "completion_tokens": len(text),
        "cached_tokens": 1,
        "finish_reason": {"type": "stop", "matched": None},
    }
