"""The engine: scheduling, packing, compiled steps, the loop, and `Engine` that scripts and the server use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgjax.engine.engine import Engine
    from sgjax.engine.info import EngineInfo, EngineStats, LiveSnapshot
    from sgjax.engine.outputs import RequestHandle

_MODULES = {
    "Engine": "engine",
    "EngineInfo": "info",
    "EngineStats": "info",
    "LiveSnapshot": "info",
    "RequestHandle": "outputs",
}

__all__ = ["Engine", "EngineInfo", "EngineStats", "LiveSnapshot", "RequestHandle"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: who wants `engine.steps` alone needs no tokenizer and no checkpoint format."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sgjax.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sgjax.engine.{_MODULES[name]}"), name)
