"""The `openai` client as a user without the language has it: a thread per run, and one call after another in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai


class Plain:
    """Calls of one server, counted."""

    def __init__(self, base_url: str):
        self._client = openai.OpenAI(base_url=base_url + "/v1", api_key="unused", max_retries=0, timeout=600)
        self._lock = threading.Lock()
        self.num_calls = self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0

    def close(self) -> None:
        self._client.close()

    def counts(self) -> dict[str, int]:
        return {
            "requests": self.num_calls,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def map[T](self, run: Callable[[dict[str, Any]], T], batch: Sequence[dict[str, Any]], threads: int) -> list[T]:
        """Runs all items, `threads` at a time."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(run, batch))

    def chat(self, messages: list[Any], max_tokens: int, **options: Any) -> str:
        """The answer of one chat completion."""
        answer: Any = self._client.chat.completions.create(
            model="default", messages=messages, temperature=0, max_tokens=max_tokens, **options
        )
        self._count(answer.usage)
        return answer.choices[0].message.content or ""

    def complete(self, prompt: str, max_tokens: int, **options: Any) -> str:
        """The answer of one text completion."""
        answer: Any = self._client.completions.create(
            model="default", prompt=prompt, temperature=0, max_tokens=max_tokens, **options
        )
        self._count(answer.usage)
        return answer.choices[0].text

    def score(self, prompt: str, choice: str) -> float:
        """The mean log-probability of a choice's tokens after a prompt, from a call that echoes both."""
        answer: Any = self._client.completions.create(
            model="default", prompt=prompt + choice, temperature=0, max_tokens=1, echo=True, logprobs=0
        )
        self._count(answer.usage)
        found = answer.choices[0].logprobs
        end = len(prompt) + len(choice)
        values = [
            value
            for offset, value in zip(found.text_offset, found.token_logprobs, strict=True)
            if len(prompt) <= offset < end
        ]
        return sum(values) / len(values)

    def select(self, prompt: str, choices: Sequence[str]) -> str:
        """The likeliest choice, by one scoring call for each."""
        return max(choices, key=lambda choice: self.score(prompt, choice))

    def _count(self, usage: Any) -> None:
        details = usage.prompt_tokens_details
        with self._lock:
            self.num_calls += 1
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += (details.cached_tokens or 0) if details else 0
            self.completion_tokens += usage.completion_tokens
