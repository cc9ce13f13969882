"""Pieces of OpenAI's responses that chat completions and completions share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from sgjax.types import FinishReason, GenerateOutput, Receipt, TokenLogprobs
from sgjax_server.schemas.answers.openai import (
    ChatLogprobs,
    ChatToken,
    Costing,
    Ending,
    LikelyToken,
    OpenAIUsage,
    TextLogprobs,
)
from sgjax_server.tokens import TokenTexts


def finish_fields(finish: FinishReason | None, *, has_calls: bool = False) -> Ending:
    """A choice's `finish_reason` and SGLang's `matched_stop`. `has_calls`: the model waits for the results of tools.

    An answer that was ended on the way is incomplete, which OpenAI's clients know as "length"; many of them refuse a
    reason that OpenAI does not have. Why it was ended is in `finish_message`.
    """
    if finish is None:
        return {"finish_reason": None}
    if finish.kind == "abort":
        return {"finish_reason": "length", "matched_stop": None, "finish_message": finish.message}
    reason = "tool_calls" if has_calls and finish.kind == "stop" else finish.kind
    return {"finish_reason": reason, "matched_stop": finish.matched}


def receipt_fields(receipt: Receipt | None, *, wanted: bool) -> Costing:
    """What a choice says of its cost where the request has `return_receipt`; a stream's last chunk of the choice."""
    return {"sgjax": {"receipt": receipt}} if wanted and receipt is not None else {}


class Usage:
    """Adds up the tokens of a call's requests. A prompt counts once, however many samples were drawn from it."""

    def __init__(self) -> None:
        self._prompt = self._completion = self._cached = 0
        self._reasoning: int | None = None

    @classmethod
    def of(cls, results: Iterable[Sequence[GenerateOutput]]) -> Usage:
        """That of finished requests."""
        usage = cls()
        for sample in itertools.chain.from_iterable(results):
            if sample.receipt is not None:
                usage.add(sample.index, sample.receipt)
        return usage

    def add(self, index: int, receipt: Receipt, num_reasoning_tokens: int | None = None) -> None:
        """Counts sample `index` of a request. The number of its tokens that are reasoning is known of chats alone."""
        if index == 0:
            self._prompt += receipt.prompt_tokens
            self._cached += receipt.cached_tokens
        self._completion += receipt.completion_tokens
        if num_reasoning_tokens is not None:
            self._reasoning = (self._reasoning or 0) + num_reasoning_tokens

    def as_dict(self) -> OpenAIUsage:
        usage: OpenAIUsage = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
        if self._reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self._reasoning}
        return usage

    def sglext(self, *, wanted: bool) -> dict[str, Any]:
        """SGLang's `sglext`, for requests with `return_cached_tokens_details`; a stream's last chunks have it."""
        return {"sglext": {"cached_tokens_details": {"device": self._cached}}} if wanted else {}


def chat_logprobs(logprobs: Sequence[TokenLogprobs] | None, texts: TokenTexts) -> ChatLogprobs | None:
    """The `logprobs` of a chat choice."""
    if logprobs is None:
        return None
    content: list[ChatToken] = [
        {
            **_chat_token(one.token_id, one.logprob, texts),
            "top_logprobs": [_chat_token(token_id, logprob, texts) for token_id, logprob in one.top],
        }
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _chat_token(token_id: int, logprob: float | None, texts: TokenTexts) -> LikelyToken:
    return {"token": texts.text(token_id), "bytes": texts.utf8(token_id), "logprob": logprob}


class CompletionLogprobs:
    """Formats the `logprobs` of one completions choice, piece by piece; offsets run on over the pieces."""

    def __init__(self, texts: TokenTexts):
        self._texts = texts
        self._offset = 0

    def format(self, logprobs: Sequence[TokenLogprobs] | None) -> TextLogprobs | None:
        if logprobs is None:
            return None
        tokens = [self._texts.text(one.token_id) for one in logprobs]
        offsets = list(itertools.accumulate(map(len, tokens), initial=self._offset))
        self._offset = offsets.pop()
        return {
            "text_offset": offsets,
            "token_logprobs": [one.logprob for one in logprobs],
            "tokens": tokens,
            "top_logprobs": [self._alternatives(one) for one in logprobs],
        }

    def _alternatives(self, one: TokenLogprobs) -> dict[str, float | None] | None:
        """By text, best first; of tokens that read alike the best stands for all."""
        if one.logprob is None or not one.top:
            return None
        found: dict[str, float | None] = {}
        for token_id, logprob in one.top:
            found.setdefault(self._texts.text(token_id), logprob)
        found.setdefault(self._texts.text(one.token_id), one.logprob)
        return found
