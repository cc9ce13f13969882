"""sgjax: a serving engine for language models in JAX.

import sgjax
with sgjax.Engine("embedded") as engine:
    print(engine.generate("The capital of France is").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgjax.types import GenerateOutput, QueueFull, Request, RequestError, SamplingParams

if TYPE_CHECKING:
    from sgjax.engine import Engine, EngineError

__version__ = "0.1.0"
__all__ = ["Engine", "EngineError", "GenerateOutput", "QueueFull", "Request", "RequestError", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """The engine brings jax with it, which takes a second: only who uses it waits."""
    if name in ("Engine", "EngineError"):
        from sgjax import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'sgjax' has no attribute {name!r}")
