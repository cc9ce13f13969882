"""Many APIs through the `litellm` package, which gives all of them OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sgjax.lang.backends import chat_api
from sgjax.lang.backends.base import Completion, Unsupported
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat
from sgjax.lang.choices import ChoicesDecision, ChoicesMethod
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt


class LiteLLM:
    """Programs on a model of `litellm`.

    `gen` has to be the whole of an assistant's turn, or the program made by `@function(num_api_spec_tokens=...)`.

    Args:
      model_name: litellm's, for example "anthropic/claude-sonnet-4-5".
      chat_template: the name of a fixed format, for what `state.text()` shows.
      **options: of every call (`api_key`, `base_url`, `timeout`, ...).

    Raises:
      ImportError: `litellm` is not installed.
    """

    is_chat_model = True
    has_prefix_cache = False

    def __init__(self, model_name: str, chat_template: str | None = None, **options: Any):
        self.model_name = model_name
        self._litellm = chat_api.require("litellm", "LiteLLM")
        self._format = FIXED_FORMATS[chat_template or "default"]
        self._options = {name: value for name, value in options.items() if value is not None}

    @property
    def chat_format(self) -> ChatFormat:
        return self._format

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        return chat_api.openai_completions(self._create(prompt, sampling), sampling, is_chat=True)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        if sampling.dtype is not None:  # what is of the type shows when all is there
            yield from self.generate(prompt, sampling)
            return
        text, usage, reason = "", None, None
        for chunk in self._create(prompt, sampling, stream=True, stream_options={"include_usage": True}):
            usage = getattr(chunk, "usage", None) or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
            yield Completion(text, chat_api.meta_of(usage, reason))

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        chat_api.refuse_select(choices)

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        raise Unsupported("litellm has no prefix cache to fill")

    def flush_cache(self) -> None:
        raise Unsupported("litellm has no prefix cache to flush")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name}

    def _create(self, prompt: Prompt, sampling: Sampling, **more: Any) -> Any:
        options = chat_api.openai_options(sampling, is_chat=True)
        options |= options.pop("extra_body", {})
        return self._litellm.completion(
            model=self.model_name, messages=chat_api.messages_of(prompt), **self._options, **options, **more
        )
