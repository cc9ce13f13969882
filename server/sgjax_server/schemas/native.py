"""Requests of SGLang's native API."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from sgjax.types import Request, RequestError, SamplingParams
from sgjax_server.schemas.common import ApiModel, RequestId, TokenIds, namespace
from sgjax_server.sessions import Continuation


class OpenSessionRequest(ApiModel):
    """A session: a conversation whose tokens the server keeps. Its size is bounded by the server's settings."""

    IGNORED = frozenset({"capacity_of_str_len"})

    session_id: RequestId | None = None
    streaming: bool | None = None
    timeout: float | None = Field(None, gt=0)


class CloseSessionRequest(ApiModel):
    session_id: RequestId


class SessionParams(ApiModel):
    """Where a request stands in its session; see `sgjax_server.sessions.Continuation`."""

    id: RequestId
    rid: RequestId | None = None
    offset: int | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None

    @property
    def continuation(self) -> Continuation:
        return Continuation(
            rid=self.rid,
            offset=self.offset,
            replace=bool(self.replace),
            drop_previous_output=bool(self.drop_previous_output),
        )


class GenerateRequest(ApiModel):
    """A prompt or a batch of prompts, as text or token ids. In a batch, most fields may be a list, one item each."""

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "The sky is blue because", "sampling_params": {"max_new_tokens": 32, "temperature": 0.7}},
    )
    IGNORED = frozenset({"custom_labels", "routing_key", "log_metrics", "modalities", "model"})

    text: str | list[str] | None = None
    input_ids: TokenIds | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: RequestId | list[RequestId] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: TokenIds | None = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    priority: int | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    session_params: SessionParams | None = None

    @property
    def is_batch(self) -> bool:
        if self.text is not None:
            return isinstance(self.text, list)
        return bool(self.input_ids) and isinstance(self.input_ids[0], list)

    def prompts(self) -> Sequence[str] | Sequence[Sequence[int]]:
        """The prompts, one or several, all as text or all as token ids.

        Raises:
          RequestError: neither or both are given, or the batch is empty.
        """
        if (self.text is None) == (self.input_ids is None):
            raise RequestError("text", "give either text or input_ids")
        given = self.text if self.text is not None else self.input_ids
        if given == [] and self.text is not None:
            raise RequestError("text", "the batch is empty")
        return given if self.is_batch else [given]  # type: ignore[return-value]

    def requests(self, prompt_ids: Sequence[Sequence[int]]) -> list[Request]:
        """One engine request per prompt.

        Raises:
          RequestError: a field's list has not one item per prompt, or a value is refused.
        """
        count = len(prompt_ids)
        rids = self._rids(count)
        sampling = self._sampling(count)
        if self.session_params is not None and (self.is_batch or sampling[0].n > 1):
            raise RequestError("session_params", "takes one prompt and one sample")
        return_logprob = _per_prompt("return_logprob", self.return_logprob, count, False)
        logprob_start = _per_prompt("logprob_start_len", self.logprob_start_len, count, -1)
        top_logprobs = _per_prompt("top_logprobs_num", self.top_logprobs_num, count, 0)
        asked = self._asked_logprobs(count)
        extra_key = namespace(self.cache_salt, self.extra_key)
        return [
            Request(
                rid=rids[i],
                input_ids=tuple(prompt_ids[i]),
                sampling=sampling[i],
                return_logprob=return_logprob[i],
                # SGLang's clients send these two always, also where no log-probabilities are asked for.
                logprob_start_len=logprob_start[i] if return_logprob[i] else -1,
                top_logprobs_num=top_logprobs[i] if return_logprob[i] else 0,
                token_ids_logprob=tuple(asked[i]),
                priority=self.priority or 0,
                extra_key=extra_key,
            )
            for i in range(count)
        ]

    def _rids(self, count: int) -> list[str]:
        if isinstance(self.rid, str) and self.is_batch:
            return [f"{self.rid}_{i}" for i in range(count)]
        if self.rid is None:
            return [uuid.uuid4().hex for _ in range(count)]
        return _per_prompt("rid", self.rid, count, "")

    def _sampling(self, count: int) -> list[SamplingParams]:
        if isinstance(self.sampling_params, list):
            return [_sampling_params(one) for one in _per_prompt("sampling_params", self.sampling_params, count, {})]
        return [_sampling_params(self.sampling_params or {})] * count

    def _asked_logprobs(self, count: int) -> list[list[int]]:
        asked = self.token_ids_logprob or []
        if asked and isinstance(asked[0], list):
            return _per_prompt("token_ids_logprob", asked, count, [])
        return [asked] * count  # type: ignore[list-item]


def _sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """SGLang's clients send null for what they leave open, parameters that sgjax lacks included."""
    if values.get("custom_params"):
        raise RequestError("custom_params", "not supported")
    has_meaning = {
        name: value
        for name, value in values.items()
        if (value is not None or name == "max_new_tokens") and name != "custom_params"
    }
    return SamplingParams.from_dict(has_meaning)


def _per_prompt(field: str, value: Any, count: int, default: Any) -> list:
    """One item per prompt, from a list of as many or from one value for all."""
    if value is None:
        return [default] * count
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(field, f"has {len(value)} items for {count} prompts")
    return value
