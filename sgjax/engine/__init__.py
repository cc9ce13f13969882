"""The engine: scheduling, packing, compiled steps, the loop, and `Engine` that scripts and the server use."""

from sgjax.engine.engine import Engine, EngineStats
from sgjax.engine.outputs import EngineError, RequestHandle

__all__ = ["Engine", "EngineError", "EngineStats", "RequestHandle"]
