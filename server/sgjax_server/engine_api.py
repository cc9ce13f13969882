"""The engine as the service sees it, wherever it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sgjax.engine import EngineInfo, EngineStats, LiveSnapshot, RequestHandle
    from sgjax.engine.info import PauseMode
    from sgjax.text import Tokenizer
    from sgjax.types import Request


class ServedEngine(Protocol):
    """What routes use of an engine: requests in, deltas out, and controls.

    `submit` and `abort` may be called from any thread, the others in the event loop.

    Attributes:
      info: its fixed facts. tokenizer: the model's, in this process.
    """

    info: EngineInfo
    tokenizer: Tokenizer

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        ...

    @property
    def failure(self) -> Exception | None:
        """Why it does not, when it was not closed."""
        ...

    def submit(self, request: Request) -> RequestHandle:
        """Queues a request; its deltas arrive at the handle, which is for `async for` where an event loop runs.

        Refusals may come at once or later, from the handle's `started` and from iterating it: RequestError, QueueFull,
        EngineError.
        """
        ...

    def abort(self, rid: str, *, own: bool = False) -> bool:
        """Ends a request and frees its pages. False when it is certain that there is none.

        Args:
          own: only if this HTTP process has sent it: for who cannot know whether its request was taken.
        """
        ...

    async def abort_requests(self, rid: str | None = None) -> None:
        """Ends a request and those of a batch under this id (`rid_0`, ...), of any HTTP process; None is all."""
        ...

    def close(self) -> None:
        """Open requests get an EngineError. Closing twice is fine."""
        ...

    async def stats(self) -> EngineStats:
        """A consistent picture, taken between two steps."""
        ...

    async def stats_now(self) -> EngineStats:
        """`stats` without waiting for the step at work; its parts may be of different moments."""
        ...

    async def metrics(self, model_name: str) -> str:
        """The engine's page for Prometheus, with the model's name as a label. Does not wait for the step at work."""
        ...

    async def live(self, max_nodes: int) -> LiveSnapshot:
        """What people look at, with at most `max_nodes` nodes of the prefix tree."""
        ...

    async def flush_cache(self) -> int:
        """Forgets every cached prefix that no running request uses; the pages freed."""
        ...

    async def pause(self, mode: PauseMode) -> None:
        """Stops stepping until `resume`; new requests wait. Pausing twice is fine."""
        ...

    async def resume(self) -> None: ...

    async def update_weights(self, model_path: str, weight_version: str | None = None) -> str:
        """Loads a checkpoint of the same architecture in place of the weights, and forgets the cache.

        Returns:
          The version that answers report from now on: the one given, or the path.

        Raises:
          RequestError: the checkpoint cannot be read or does not fit; the old weights go on serving.
        """
        ...

    async def start_profile(self, output_dir: str) -> None:
        """Begins a `jax.profiler` trace. Raises RequestError when one is running."""
        ...

    async def stop_profile(self) -> None:
        """Writes the trace. Raises RequestError when none is running."""
        ...
