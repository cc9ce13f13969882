"""Answers of SGLang's own routes: generation, sessions, tokens, scores, and the reading of outputs."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from sgjax.types import Receipt

Logprob = tuple[float | None, int, str | None]
"""A log-probability, its token's id, and the text with `return_text_in_logprobs`."""


class Stopped(TypedDict):
    """`matched`: the stop token's id, the stop string, or what the regular expression matched."""

    type: Literal["stop"]
    matched: int | str | None


class CutOff(TypedDict):
    type: Literal["length"]
    length: int


class Aborted(TypedDict):
    type: Literal["abort"]
    message: str | None


class MetaInfo(TypedDict):
    """What is missing while a stream goes on comes with its end; log-probabilities where they were asked for."""

    id: str
    finish_reason: Stopped | CutOff | Aborted | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: NotRequired[int]
    forced_tokens: NotRequired[int]
    e2e_latency: NotRequired[float]
    weight_version: NotRequired[str]
    receipt: NotRequired[Receipt]
    input_token_logprobs: NotRequired[list[Logprob]]
    output_token_logprobs: NotRequired[list[Logprob]]
    input_top_logprobs: NotRequired[list[list[Logprob] | None]]
    output_top_logprobs: NotRequired[list[list[Logprob] | None]]
    input_token_ids_logprobs: NotRequired[list[list[Logprob] | None]]
    output_token_ids_logprobs: NotRequired[list[list[Logprob] | None]]


class Generated(TypedDict):
    """One sample. In a stream it is whole so far, and `index` tells the samples of a batch apart."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: NotRequired[int]


class Tokens(TypedDict):
    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


class Texts(TypedDict):
    text: str | list[str]


class ScoreUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Scores(TypedDict):
    """One list per item, in the order of its labels."""

    object: Literal["scoring"]
    model: str
    scores: list[list[float]]
    usage: ScoreUsage


class ReadCall(TypedDict):
    """`parameters` are JSON text."""

    tool_index: int
    name: str
    parameters: str


class ReadCalls(TypedDict):
    normal_text: str
    calls: list[ReadCall]


class ReadReasoning(TypedDict):
    reasoning_text: str
    text: str
