"""Requests of SGLang's control routes."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from sgjax.engine.info import PauseMode
from sgjax.types import RequestError
from sgjax_server.schemas.common import ApiModel


class AbortRequest(ApiModel):
    """Which requests to end: one, those of a batch (ids `rid_0`, `rid_1`, ...), or all."""

    IGNORED = frozenset({"abort_message", "finished_reason"})

    rid: str | None = None
    abort_all: bool = False

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.rid or self.abort_all):
            raise RequestError("rid", "give a request's id, or abort_all")
        return self


class PauseRequest(ApiModel):
    mode: PauseMode = "abort"


class ContinueRequest(ApiModel):
    IGNORED = frozenset({"torch_empty_cache"})


class UpdateWeightsRequest(ApiModel):
    """A checkpoint to serve from now on."""

    # How the work is done, not what it comes to.
    IGNORED = frozenset({"is_async", "torch_empty_cache", "recapture_cuda_graph", "token_step"})

    model_path: str = Field(min_length=1)
    weight_version: str | None = Field(None, min_length=1, max_length=256)
    load_format: Literal["auto"] | None = None
    abort_all_requests: bool = False
    keep_pause: bool = False
    flush_cache: Literal[True] | None = None


class ProfileRequest(ApiModel):
    # The trace holds the host's and the device's work either way.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"activities", "with_stack", "record_shapes", "profile_id", "profile_prefix", "merge_profiles"}
        | {"detailed_annotations"}
    )

    output_dir: str | None = Field(None, min_length=1)
