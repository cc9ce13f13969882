"""From a call's requests to whoever shows their deltas: at once where that is possible, merged where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from sgjax.types import OutputDelta

Deltas = list[tuple[int, OutputDelta]]
"""What becomes visible together: each with the number of its request. Those of a sample are in order."""

Take = Callable[[Deltas], asyncio.Future[Any] | None]
"""Shows deltas. It returns what to wait for before more of them can be shown, as where a client reads slowly."""


class Delivery:
    """Hands deltas on in the moment in which they arrive, without a switch of tasks.

    Deltas of one sample are merged until there is text from at least `interval` tokens, or the end; and further while
    `take` has something to wait for.

    Args:
      num_samples: those that have not finished.

    Attributes:
      ended: done when all of them have, or with what went wrong.
    """

    def __init__(self, take: Take, interval: int, num_samples: int):
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take
        self._interval = interval
        self._num_open = num_samples
        self._held: dict[tuple[int, int], OutputDelta] = {}
        self._taking: asyncio.Future[Any] | None = None

    def put(self, number: int, deltas: Iterable[OutputDelta]) -> None:
        """Takes what has arrived for request `number`."""
        held = self._held
        for delta in deltas:
            key = (number, delta.index)
            held[key] = _join(held[key], delta) if key in held else delta
            self._num_open -= delta.finish is not None
        if self._taking is None:
            self._hand_on()

    def fail(self, error: Exception) -> None:
        """Ends it."""
        if not self.ended.done():
            self.ended.set_exception(error)

    def cancel(self) -> None:
        """Hands on nothing further."""
        self.ended.cancel()
        if self._taking is not None:
            self._taking.cancel()

    def _hand_on(self) -> None:
        try:
            visible = [
                (key[0], delta)
                for key, delta in self._held.items()
                if delta.finish is not None or (delta.text and len(delta.token_ids) >= self._interval)
            ]
            for number, delta in visible:
                del self._held[number, delta.index]
            self._taking = self._take(visible) if visible else None
        except Exception as error:
            self.fail(error)
        else:
            if self._taking is not None:
                self._taking.add_done_callback(self._taken)
            elif not self._num_open:
                self.ended.set_result(None)

    def _taken(self, taking: asyncio.Future[Any]) -> None:
        self._taking = None
        if taking.cancelled() or self.ended.done():
            return
        if (error := taking.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self._hand_on()


def _join(first: OutputDelta, second: OutputDelta) -> OutputDelta:
    """Two deltas of one sample, in order, as one."""
    first.text += second.text
    first.token_ids.extend(second.token_ids)
    if second.logprobs is not None:
        first.logprobs = (first.logprobs or []) + second.logprobs
    if second.prompt_logprobs is not None:
        first.prompt_logprobs = second.prompt_logprobs
    first.finish = second.finish
    first.receipt = second.receipt or first.receipt
    return first
