"""Answers of probes, of routes about the server, and of those that control it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from pydantic import with_config

from sgjax.engine.info import EngineStats
from sgjax_server.config import RequestDetail


class Ready(TypedDict):
    status: Literal["ready"]


class NotReady(TypedDict):
    """While the model loads: what is done now, and which share of it. Else why there is no engine."""

    status: Literal["loading", "restarting", "failed"]
    stage: NotRequired[str]
    progress: NotRequired[float]
    message: NotRequired[str]


class Generating(TypedDict):
    """`busy`: a token came for others."""

    status: Literal["ready", "busy"]


class ModelInfo(TypedDict):
    """`programs`: the version of programs that /run_program takes. `sampling_defaults`: the checkpoint's."""

    model_path: str
    tokenizer_path: str
    served_model_name: str
    is_generation: Literal[True]
    weight_version: str
    architectures: list[str]
    vocab_size: int
    context_length: int
    page_size: int
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: list[int]
    programs: int
    sampling_defaults: dict[str, Any]


class WeightVersion(TypedDict):
    weight_version: str


@with_config(extra="allow")
class ServerInfo(TypedDict):
    """Beside these, every setting of the engine and the server by its name, but for keys."""

    served_model_name: str
    max_total_num_tokens: int
    internal_states: list[EngineStats]
    version: str


class Queues(TypedDict):
    waiting: int
    grammar: int


class Load(TypedDict):
    """What is cached and used by nobody gives way at once, and does not count as used."""

    dp_rank: int
    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    max_running_requests: int | None
    token_usage: float
    cache_hit_rate: float
    queues: Queues


class Loads(TypedDict):
    timestamp: str
    version: str
    accelerator: str
    loads: list[Load]


# --- control --------------------------------------------------------------------------------------------------


class CacheFlushed(TypedDict):
    success: Literal[True]
    freed_pages: int


class Controlled(TypedDict):
    status: Literal["ok"]
    message: str


class WeightsUpdated(TypedDict):
    """`num_paused_requests`: those that wait, where generation is paused."""

    success: Literal[True]
    message: str
    num_paused_requests: int
    weight_version: str


class WeightsNotUpdated(TypedDict):
    """Where the checkpoint is refused; the old weights go on serving."""

    success: Literal[False]
    message: str
    num_paused_requests: int


class ProfileStarted(TypedDict):
    success: Literal[True]
    output_dir: str


class ProfileWritten(TypedDict):
    success: Literal[True]


class LoggingConfigured(TypedDict):
    log_requests: RequestDetail
