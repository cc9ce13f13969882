"""An engine in this process, for tests and notebooks; `sgjax serve` runs it in a process of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgjax.engine import Engine, EngineStats, LiveSnapshot, RequestHandle
    from sgjax.engine.info import PauseMode
    from sgjax.types import Request


class LocalEngine:
    """A `ServedEngine` over `sgjax.Engine`, which it closes. Controls run in a thread, since they wait for a step."""

    def __init__(self, engine: Engine):
        self.info = engine.info
        self.tokenizer = engine.tokenizer
        self._engine = engine

    @property
    def is_alive(self) -> bool:
        return self._engine.is_alive

    @property
    def failure(self) -> Exception | None:
        return self._engine.failure

    def submit(self, request: Request) -> RequestHandle:
        return self._engine.submit(request)

    def abort(self, rid: str, *, own: bool = False) -> bool:
        return self._engine.abort(rid)

    def close(self) -> None:
        self._engine.close()

    async def stats(self) -> EngineStats:
        return await asyncio.to_thread(self._engine.stats)

    async def stats_now(self) -> EngineStats:
        return self._engine.stats_now()

    async def metrics(self, model_name: str) -> str:
        return self._engine.metrics(model_name)

    async def live(self, max_nodes: int) -> LiveSnapshot:
        return await asyncio.to_thread(self._engine.live, max_nodes)

    async def abort_requests(self, rid: str | None = None) -> None:
        await asyncio.to_thread(self._engine.abort_requests, rid)

    async def flush_cache(self) -> int:
        return await asyncio.to_thread(self._engine.flush_cache)

    async def pause(self, mode: PauseMode) -> None:
        await asyncio.to_thread(self._engine.pause, mode)

    async def resume(self) -> None:
        await asyncio.to_thread(self._engine.resume)

    async def update_weights(self, model_path: str, weight_version: str | None = None) -> str:
        return await asyncio.to_thread(self._engine.update_weights, model_path, weight_version)

    async def start_profile(self, output_dir: str) -> None:
        await asyncio.to_thread(self._engine.start_profile, output_dir)

    async def stop_profile(self) -> None:
        await asyncio.to_thread(self._engine.stop_profile)
