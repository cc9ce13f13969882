"""A server of sgjax or SGLang, over HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgjax.lang.backends.base import Completion, refuse_media
from sgjax.lang.backends.http import EndpointError, JsonClient
from sgjax.lang.backends.jinja_render import compile_template
from sgjax.lang.backends.params import logprob_options, sampling_params
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat, FixedFormat, TemplateFormat, fixed_format_of
from sgjax.lang.choices import ChoiceScores, ChoicesDecision, ChoicesMethod, TokenLogprob
from sgjax.lang.ir import Sampling
from sgjax.lang.program_json import VERSION
from sgjax.lang.transcript import Prompt

_SCORING = {"max_new_tokens": 0, "temperature": 0.0}
# A choice is scored from where its tokens differ from the prefix's; they seldom differ earlier than that.
_LOOKBACK_TOKENS = 4


class RuntimeEndpoint:
    """Programs on a server.

    Args:
      base_url: for example "http://127.0.0.1:30000".
      api_key: sent as a bearer token.
      chat_template_name: SGLang's name for `chat_template`.
      verify: False accepts any certificate; a path is a file of certificate authorities.
      chat_template: Jinja text or the name of a fixed format. By default what the server tells, or else what the
        model's name suggests.
      special_tokens: `bos_token`, `eos_token` for a template, when the server does not tell.
      timeout_s: the longest silence of the server, in seconds; None without limit.

    Raises:
      EndpointError: the server cannot be reached.
      ValueError: the chat template is none.
    """

    is_chat_model = False
    has_prefix_cache = True

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: bool | str | None = None,
        chat_template_name: str | None = None,
        *,
        chat_template: str | None = None,
        special_tokens: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ):
        self.base_url = base_url.rstrip("/")
        self._client = JsonClient(base_url, api_key=api_key, verify=verify, timeout_s=timeout_s)
        self.model_info: dict[str, Any] = self._first_of("/model_info", "/get_model_info")
        told = {name: self.model_info.get(name) for name in ("bos_token", "eos_token")}
        tokens = {**told, **(special_tokens or {})}
        self._special_tokens = {name: token for name, token in tokens.items() if isinstance(token, str)}
        self._format = self._chat_format(chat_template or chat_template_name)
        self._has_own_template = bool(chat_template or chat_template_name or special_tokens)
        self._adds_bos: bool | None = None

    def _chat_format(self, given: str | None) -> ChatFormat:
        source = given or self.model_info.get("chat_template")
        if isinstance(source, str) and "{" in source:
            return TemplateFormat(compile_template(source, self._special_tokens))
        if given is not None:
            if given not in FIXED_FORMATS:
                raise ValueError(f"chat_template: {given!r} is neither Jinja nor one of {', '.join(FIXED_FORMATS)}")
            return FIXED_FORMATS[given]
        return fixed_format_of(self.get_model_name())

    @property
    def chat_format(self) -> ChatFormat:
        return self._format

    def get_model_name(self) -> str:
        """The server's `model_path`."""
        return str(self.model_info.get("model_path", ""))

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        answer = self._client.post("/generate", self._body(prompt, sampling))
        return [_completion(one) for one in (answer if isinstance(answer, list) else [answer])]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        for answer in self._client.stream("/generate", {**self._body(prompt, sampling), "stream": True}):
            yield _completion(answer)

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        body = {"text": self._text(prompt), "sampling_params": _SCORING}
        return self._client.post("/generate", body)["meta_info"]

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        text = self._text(prompt)
        # The prefix alone first: it fills the cache and tells its length, from where on to ask for log-probabilities.
        metas = [self.prefill(prompt)] if text else []
        num_tokens = metas[0]["prompt_tokens"] if metas else 0
        texts = [text, *(text + choice for choice in choices)] if text else list(choices)
        answers = self._score({"text": texts}, max(0, num_tokens - _LOOKBACK_TOKENS))
        metas += answers
        tokens = [_tokens(meta) for meta in answers]
        prefix = tokens.pop(0) if text else ()
        conditional = tuple(own[_common_len(prefix, own) :] for own in tokens)
        unconditional = None
        if method.requires_unconditional_logprobs:
            alone = self._score({"input_ids": [[token for _, token, _ in own] for own in conditional]}, 0)
            unconditional = tuple(_tokens(meta) for meta in alone)
            metas += alone
        decision = method(choices, ChoiceScores(conditional, unconditional))
        cost = {name: sum(meta.get(name) or 0 for meta in metas) for name in ("prompt_tokens", "cached_tokens")}
        return dataclasses.replace(decision, meta_info={**decision.meta_info, **cost, "completion_tokens": 0})

    def flush_cache(self) -> None:
        self._client.post("/flush_cache")

    def get_server_info(self) -> dict[str, Any]:
        return self._first_of("/server_info", "/get_server_info")

    def cache_prefix(self, prefix: str) -> None:
        """Puts a text in the server's prefix cache."""
        self.prefill(Prompt(prefix))

    def run_program(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        """Has the server run a program.

        Args:
          request: the body of `/run_program`, with `stream`.

        Returns:
          Its events once the server has taken the program, which leaving early ends. None when it does not: it has no
          such route, it refuses this program, too many are running, or the chat template was given here as Jinja.
        """
        if self.model_info.get("programs") != VERSION:
            return None
        if isinstance(self._format, FixedFormat):
            request = {**request, "chat_format": self._format.name}
        elif self._has_own_template:
            return None
        events = self._client.stream("/run_program", request)
        try:
            first = next(events, None)  # comes at once
        except EndpointError:
            return None
        return None if first is None else events

    def _first_of(self, *paths: str) -> dict[str, Any]:
        """The answer of the first route that the server has; empty when it has none of them."""
        for path in paths:
            try:
                return self._client.get(path)
            except EndpointError as error:
                if error.status not in (404, 405):
                    raise
        return {}

    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        return {
            "text": self._text(prompt),
            "sampling_params": sampling_params(sampling),
            **logprob_options(sampling),
        }

    def _text(self, prompt: Prompt) -> str:
        """The prompt's text, without the BOS that the server's tokenizer adds itself."""
        refuse_media(prompt, "a server's /generate")
        bos = self._special_tokens.get("bos_token")
        if not bos or not prompt.text.startswith(bos):
            return prompt.text
        if self._adds_bos is None:
            probe = self._client.post("/generate", {"text": bos, "sampling_params": _SCORING})
            self._adds_bos = probe["meta_info"]["prompt_tokens"] > 1
        return prompt.text[len(bos) :] if self._adds_bos else prompt.text

    def _score(self, prompts: dict[str, Any], start: int) -> list[dict[str, Any]]:
        """The meta information of all prompts, asked for as one batch."""
        body = {
            **prompts,
            "sampling_params": _SCORING,
            "return_logprob": True,
            "logprob_start_len": start,
            "return_text_in_logprobs": True,
        }
        return [answer["meta_info"] for answer in self._client.post("/generate", body)]


def _completion(answer: dict[str, Any]) -> Completion:
    return Completion(answer["text"], answer["meta_info"])


def _tokens(meta: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    return tuple((one[0], one[1], one[2]) for one in meta["input_token_logprobs"])


def _common_len(prefix: Sequence[TokenLogprob], own: Sequence[TokenLogprob]) -> int:
    """How many tokens both begin with; one fewer than all of `own`, since a choice needs a token of its own."""
    same = 0
    for left, right in zip(prefix, own[:-1], strict=False):
        if left[1] != right[1]:
            break
        same += 1
    return same
