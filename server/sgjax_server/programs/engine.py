"""The engine as one program sees it: all of its requests end together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sgjax.lang.backends.engine import EngineBackend
from sgjax.lang.chat_format import FIXED_FORMATS
from sgjax.types import GenerateOutput, QueueFull, Request, SamplingParams
from sgjax_server.programs.budget import Budget

if TYPE_CHECKING:
    from sgjax.engine import RequestHandle
    from sgjax_server.engine_api import ServedEngine

# A program whose requests find the queue full waits, so that it goes on where a single request would be refused.
_QUEUE_FULL_S = 0.05


class ProgramEnded(RuntimeError):
    """The program's end, on its way through the threads that still worked for it."""


class ProgramEngine:
    """Submits a program's requests, until `end`. What `EngineBackend` needs of an engine; safe to use from any thread.

    Args:
      rid: its requests are a batch under this id.
      priority, extra_key: of every request.
    """

    def __init__(
        self,
        engine: ServedEngine,
        budget: Budget,
        *,
        rid: str,
        priority: int,
        extra_key: str,
    ):
        self.tokenizer = engine.tokenizer
        self._engine = engine
        self._budget = budget
        self._rid = rid
        self._options = {"priority": priority, "extra_key": extra_key}
        self._lock = threading.Lock()
        self._num_requests = 0
        self._live: set[str] = set()
        self._ended = threading.Event()

    def end(self) -> None:
        """Aborts everything at work, and refuses what comes. Ending twice is fine."""
        with self._lock:
            self._ended.set()
            live, self._live = self._live, set()
        for rid in live:
            self._engine.abort(rid)

    def generate(
        self, *, input_ids: Any, sampling_params: SamplingParams, **options: Any
    ) -> GenerateOutput | list[GenerateOutput]:
        """As `Engine.generate`, for one prompt or several."""
        is_single = not isinstance(input_ids[0], Sequence)
        prompts = [input_ids] if is_single else input_ids
        handles: list[RequestHandle] = []
        try:
            handles.extend(self._submit(ids, sampling_params, options) for ids in prompts)
            outputs = [output for handle in handles for output in self._finished(handle)]
        finally:
            self._close(handles)
        return outputs[0] if is_single and len(outputs) == 1 else outputs

    def stream(
        self, *, input_ids: Sequence[int], sampling_params: SamplingParams, **options: Any
    ) -> Iterator[GenerateOutput]:
        """As `Engine.stream`."""
        handle = self._submit(input_ids, sampling_params, options)
        outputs = _new_outputs(handle)
        try:
            for delta in handle:
                outputs[delta.index].add(delta)
                yield outputs[delta.index]
            self._settle(handle, outputs)
        finally:
            self._close([handle])

    def _submit(self, ids: Sequence[int], sampling: SamplingParams, options: dict[str, Any]) -> RequestHandle:
        with self._lock:
            rid = f"{self._rid}_{self._num_requests}"
            self._num_requests += 1
        request = Request(rid=rid, input_ids=tuple(ids), sampling=sampling, **self._options, **options)
        self._budget.reserve_tokens(self._most_tokens(request))
        while True:
            with self._lock:  # so that none begins after `end` has looked
                if self._ended.is_set():
                    raise ProgramEnded("the program has ended")
                handle = None
                with contextlib.suppress(QueueFull):
                    handle = self._engine.submit(request)
                    self._live.add(request.rid)
            if handle is not None and self._is_queued(handle):
                return handle
            self._ended.wait(_QUEUE_FULL_S)

    def _is_queued(self, handle: RequestHandle) -> bool:
        """Waits until the engine has taken a request; False when its queue is full."""
        try:
            handle.wait_started()
        except QueueFull:
            with self._lock:
                self._live.discard(handle.request.rid)
            return False
        return True

    def _finished(self, handle: RequestHandle) -> list[GenerateOutput]:
        outputs = _new_outputs(handle)
        for delta in handle:
            outputs[delta.index].add(delta)
        self._settle(handle, outputs)
        return outputs

    def _settle(self, handle: RequestHandle, outputs: Sequence[GenerateOutput]) -> None:
        """All samples have finished: the id may be somebody else's from now on."""
        with self._lock:
            self._live.discard(handle.request.rid)
        num_used = sum(len(output.output_ids) for output in outputs)
        self._budget.return_tokens(self._most_tokens(handle.request) - num_used)

    def _close(self, handles: Sequence[RequestHandle]) -> None:
        """Aborts those that have not finished."""
        with self._lock:
            live = self._live.intersection(handle.request.rid for handle in handles)
            self._live -= live
        for rid in live:
            self._engine.abort(rid)

    def _most_tokens(self, request: Request) -> int:
        most = request.sampling.max_new_tokens
        if most is None:
            most = max(0, self._engine.info.context_length - len(request.input_ids))
        return most * request.sampling.n


def _new_outputs(handle: RequestHandle) -> list[GenerateOutput]:
    request = handle.request
    return [GenerateOutput(request.rid, index, request.input_ids) for index in range(request.sampling.n)]


class ProgramBackend(EngineBackend):
    """Where a program's generations go.

    Args:
      chat_format: the name of a fixed format in place of the model's template.
    """

    def __init__(self, engine: ProgramEngine, chat_format: str | None):
        super().__init__(engine)
        if chat_format is not None:
            self._format = FIXED_FORMATS[chat_format]
            self._has_template = False
