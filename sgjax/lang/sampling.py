"""How one generation of a program is sampled."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one `gen` generates, in the engine's names. None is "not given": the run's defaults fill it in."""

    max_new_tokens: Any = None
    min_new_tokens: Any = None
    n: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    stop_regex: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    ignore_eos: Any = None
    seed: Any = None
    return_logprob: Any = None
    logprob_start_len: Any = None
    top_logprobs_num: Any = None
    return_text_in_logprobs: Any = None
    dtype: Any = None
    regex: Any = None
    json_schema: Any = None
    ebnf: Any = None
    structural_tag: Any = None

    def over(self, defaults: Sampling) -> Sampling:
        """This, with the defaults where nothing is given."""
        return dataclasses.replace(defaults, **self.given())

    def given(self) -> dict[str, Any]:
        """The fields that are not None."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if value is not None}


NOTHING_GIVEN = Sampling()
DEFAULT_SAMPLING = Sampling(max_new_tokens=128, temperature=1.0)
