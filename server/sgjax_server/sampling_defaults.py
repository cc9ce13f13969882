"""What a checkpoint says about sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The rest of generation_config.json is about token ids and training libraries. The list is SGLang's.
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that `generation_config.json` recommends, for requests that leave them open."""
    return {name: generation_config[name] for name in _NAMES if generation_config.get(name) is not None}
