"""OpenAI's API, and whatever else speaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sgjax.lang.backends import chat_api
from sgjax.lang.backends.base import Completion, Unsupported, refuse_media
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat
from sgjax.lang.choices import ChoiceScores, ChoicesDecision, ChoicesMethod, TokenLogprob
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt

_COMPLETION_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
_REASONING_MODELS = re.compile(r"(o\d|gpt-5)")  # they take max_completion_tokens and no sampling options


class OpenAI:
    """Programs on OpenAI's API, by the `openai` package.

    With a chat model `gen` has to be the whole of an assistant's turn, or the program made by
    `@function(num_api_spec_tokens=...)`. `select` needs a completion model whose server returns log-probabilities of
    the prompt.

    Args:
      is_chat_model: by default, whether the model is none of OpenAI's completion models.
      chat_template: the name of a fixed format, for what `state.text()` shows and completion models are sent.
      is_azure: use `openai.AzureOpenAI`.
      *args, **kwargs: of the client (`api_key`, `base_url`, ...).

    Raises:
      ImportError: `openai` is not installed.
    """

    has_prefix_cache = False

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        *args: Any,
        **kwargs: Any,
    ):
        openai = chat_api.require("openai", "OpenAI")
        self.model_name = model_name
        self.is_chat_model = model_name not in _COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.client = (openai.AzureOpenAI if is_azure else openai.OpenAI)(*args, **kwargs)
        self._format = FIXED_FORMATS[chat_template or "default"]
        self._is_reasoning = _REASONING_MODELS.match(model_name) is not None

    @property
    def chat_format(self) -> ChatFormat:
        return self._format

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        response = self._create(prompt, sampling)
        return chat_api.openai_completions(response, sampling, is_chat=self.is_chat_model)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        if sampling.dtype is not None:  # what is of the type shows when all is there
            yield from self.generate(prompt, sampling)
            return
        text, usage, reason = "", None, None
        with self._create(prompt, sampling, stream=True, stream_options={"include_usage": True}) as chunks:
            for chunk in chunks:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    text += (choice.delta.content if self.is_chat_model else choice.text) or ""
                    reason = choice.finish_reason or reason
                yield Completion(text, chat_api.meta_of(usage, reason))

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        if self.is_chat_model:
            chat_api.refuse_select(choices)
        refuse_media(prompt, "a completion model")
        start = len(prompt.text)
        conditional = self._score([prompt.text + choice for choice in choices], start)
        alone = self._score(list(choices), 0) if method.requires_unconditional_logprobs else None
        if alone is not None:
            # The end of the text and the start of a choice may be one token in the one and two in the other.
            pairs = [
                (given[-size:], free[-size:])
                for given, free in zip(conditional, alone, strict=True)
                if (size := min(len(given), len(free)))
            ]
            conditional, alone = tuple(given for given, _ in pairs), tuple(free for _, free in pairs)
        return method(choices, ChoiceScores(conditional, alone))

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        raise Unsupported("OpenAI's API has no prefix cache to fill")

    def flush_cache(self) -> None:
        raise Unsupported("OpenAI's API has no prefix cache to flush")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name}

    def _create(self, prompt: Prompt, sampling: Sampling, **more: Any) -> Any:
        options = chat_api.openai_options(sampling, is_chat=self.is_chat_model, is_reasoning=self._is_reasoning)
        if self.is_chat_model:
            messages: Any = chat_api.messages_of(prompt)
            return self.client.chat.completions.create(model=self.model_name, messages=messages, **options, **more)
        refuse_media(prompt, "a completion model")
        return self.client.completions.create(model=self.model_name, prompt=prompt.text, **options, **more)

    def _score(self, texts: list[str], start: int) -> tuple[tuple[TokenLogprob, ...], ...]:
        """The log-probabilities of the tokens that reach beyond `start` characters."""
        response = self.client.completions.create(
            model=self.model_name, prompt=texts, max_tokens=0, echo=True, logprobs=1, temperature=0.0
        )
        found = []
        for choice in response.choices:
            logprobs = choice.logprobs
            if logprobs is None or not logprobs.tokens:
                raise Unsupported(f"the server of {self.model_name} gives no log-probabilities of a prompt")
            rows = zip(logprobs.token_logprobs or [], logprobs.tokens, logprobs.text_offset or [], strict=True)
            found.append(tuple((value, -1, token) for value, token, at in rows if at + len(token) > start))
        return tuple(found)
