"""The protocol between programs and whatever runs models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sgjax.lang.chat_format import ChatFormat
from sgjax.lang.choices import ChoicesDecision, ChoicesMethod
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """One sample: the text, and SGLang's meta information (prompt_tokens, completion_tokens, finish_reason, ...)."""

    text: str
    meta_info: dict[str, Any]


@runtime_checkable
class Backend(Protocol):
    """Runs the generations of programs. All methods may be called from many threads at once.

    What a method raises ends the program's state; `Unsupported` is for what the backend cannot do.

    Attributes:
      is_chat_model: it takes messages, not text. A generation then has to be the whole of an assistant's turn, and
        the text that the program builds is only for its reader.
      has_prefix_cache: `prefill` makes later prompts that begin alike cheaper.
      chat_format: how turns become text.
    """

    @property
    def is_chat_model(self) -> bool: ...

    @property
    def has_prefix_cache(self) -> bool: ...

    @property
    def chat_format(self) -> ChatFormat: ...

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        """`sampling.n` samples, complete."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        """One sample as it grows: each item holds the text so far, and the last one everything.

        Leaving early ends the generation.
        """
        ...

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        """The best of the choices. The meta information says what it cost, summed over its requests."""
        ...

    def prefill(self, prompt: Prompt) -> Mapping[str, Any]:
        """Puts the prompt in the prefix cache; the request's meta information."""
        ...

    def flush_cache(self) -> None:
        """Empties the prefix cache, as far as no request uses it."""
        ...

    def get_server_info(self) -> dict[str, Any]:
        """Settings and state; which keys there are differs between backends."""
        ...


@runtime_checkable
class EndsEarly(Protocol):
    """What a backend may have besides: requests that end when nobody wants their results any more."""

    def until(self, is_over: Callable[[], bool]) -> Backend:
        """The same backend, whose generations end soon after `is_over()` holds: they are aborted, and raise."""
        ...


class Unsupported(NotImplementedError):
    """A backend does not do this. Reading from the state raises `ProgramError` with this as its cause."""


def refuse_media(prompt: Prompt, backend: str) -> None:
    """Raises Unsupported for a prompt with pictures or films."""
    if prompt.media:
        raise Unsupported(f"{backend} does not serve images or video yet; the program appended {prompt.media[0]!r}")


def as_backend(value: Any) -> Backend:
    """A backend of what users give as one: a backend, a `Runtime`, or an engine.

    Raises:
      TypeError: it is none of them.
    """
    value = getattr(value, "endpoint", value)
    if isinstance(value, Backend):
        return value
    if hasattr(value, "tokenizer") and hasattr(value, "submit"):
        from sgjax.lang.backends.engine import EngineBackend

        return EngineBackend(value)
    raise TypeError(f"{value!r} is no backend: give an Engine, a Runtime, a RuntimeEndpoint or a client's backend")
