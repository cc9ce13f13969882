"""The engine: scheduling, packing, compiled steps, the loop, and `Engine` that scripts and the server use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgjax.engine.engine import Engine, EngineStats
    from sgjax.engine.outputs import EngineError, RequestHandle

__all__ = ["Engine", "EngineError", "EngineStats", "RequestHandle"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: who wants `engine.steps` alone needs no tokenizer and no checkpoint format."""
    if name in ("Engine", "EngineStats"):
        from sgjax.engine import engine

        return getattr(engine, name)
    if name in ("EngineError", "RequestHandle"):
        from sgjax.engine import outputs

        return getattr(outputs, name)
    raise AttributeError(f"module 'sgjax.engine' has no attribute {name!r}")
