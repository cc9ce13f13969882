"""`TokenEngine`: a model at work on token ids. Text is `Engine`'s, or another process's."""

from __future__ import annotations

import atexit
import dataclasses
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sgjax.config import ConfigError
from sgjax.engine.admission import LiveRequests
from sgjax.engine.build import BuiltEngine
from sgjax.engine.info import EngineStats, LiveSnapshot, PauseMode, StepReport
from sgjax.engine.live import take_live_snapshot
from sgjax.engine.loop import ABORTED, EngineLoop, EventSink
from sgjax.engine.runner import Runner
from sgjax.engine.sequence import Sequence
from sgjax.grammar import GrammarCompiler
from sgjax.models.checkpoint.base import CheckpointError
from sgjax.models.errors import ModelError
from sgjax.models.loader import load_model
from sgjax.models.spec import Params
from sgjax.types import FinishReason, Request, RequestError


class TokenEngine:
    """Takes requests, sends token events to a sink, and can be controlled while it runs. Safe to use from any thread.

    Args:
      built: owned by this object from now on.
      sink: where events go; called by the engine's thread.
    """

    def __init__(self, built: BuiltEngine, sink: EventSink):
        self.info = built.info
        self.config = built.info.config
        self._core = built.core
        self._grammars = built.grammars
        self._metrics = built.metrics
        self._eos_token_ids = built.tokenizer.eos_token_ids
        self._rng = np.random.default_rng(self.config.random_seed)
        self._weights_lock = threading.Lock()
        live = LiveRequests(max_queued=self.config.max_queued_requests, max_tokens=self.config.max_tokens_in_flight)
        self._loop = EngineLoop(built.core, sink, live)
        # Also when nobody closes it: threads at work in native code while the interpreter ends would abort the process.
        # Registered after jax's own clean-up, and so run before it, which a finalizer's own hook would not be.
        self._shut_down = weakref.finalize(self, _shut_down, self._loop, built.grammars, built.core.runner)
        atexit.register(self._shut_down)

    def submit_tokens(
        self, request: Request, register: Callable[[], None], *, bounded: bool = True, arrival_s: float | None = None
    ) -> None:
        """Validates and queues a request; returns at once.

        Args:
          register: called in the engine's thread before the request's first event reaches the sink.
          bounded: refuse when `max_queued_requests` are waiting, or `max_tokens_in_flight` would be exceeded.
          arrival_s: when the client's request came, by `time.monotonic`; times of the receipt count from there.

        Raises:
          RequestError: the request could never run; names the field. A refused grammar is told to the sink, since
            grammars are compiled after this returns.
          QueueFull: too many are waiting, or in flight.
          EngineError: the engine has failed or is closed.
        """
        self.info.validate(request)
        if bounded:
            self.info.check_in_flight([request])
        spec = request.sampling.grammar
        self._loop.submit(
            request,
            self._sequences(request, time.monotonic() if arrival_s is None else arrival_s),
            register,
            most_tokens=self.info.most_tokens(request),
            bounded=bounded,
            grammar=None if spec is None else self._grammars.compile(spec),
            jump_forward=not self.config.disable_jump_forward,
        )

    def _sequences(self, request: Request, arrival_s: float) -> list[Sequence]:
        sampling = request.sampling
        seed = sampling.seed if sampling.seed is not None else int(self._rng.integers(2**62))
        stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= frozenset(self._eos_token_ids)
        return [
            Sequence(
                request,
                index,
                seed=seed + index,
                stop_ids=stop_ids,
                # A sequence that outgrew the whole pool could never be finished.
                context_length=min(self.info.context_length, self.info.max_total_tokens),
                arrival_s=arrival_s,
            )
            for index in range(sampling.n)
        ]

    def abort(
        self,
        rid: str,
        index: int | None = None,
        reason: FinishReason | None = None,
        only_if: Callable[[], bool] | None = None,
    ) -> bool:
        """Ends a request, or one sample of it, and frees its pages. False when the request is unknown or has ended.

        Args:
          reason: what the last event reports; default: an abort.
          only_if: asked first in the engine's thread, once what was queued before is done.
        """
        return self._loop.abort(rid, index, reason or ABORTED, only_if)

    def abort_requests(self, rid: str | None = None) -> None:
        """Ends a request and those of a batch that was sent under this id (`rid_0`, `rid_1`, ...); None is all."""
        self._loop.call(lambda: self._loop.abort_requests(rid))

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, run between two steps in the engine's thread, where the sink is called too."""
        return self._loop.call(function)

    # --- operating --------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        return self._loop.is_alive

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, when it was not `close`."""
        return self._loop.failure

    def stats(self) -> EngineStats:
        """A consistent picture, taken between two steps."""
        return self._loop.call(self.stats_now)

    def stats_now(self) -> EngineStats:
        """`stats` without waiting for the step at work; its parts may be of different moments."""
        scheduler, compiler = self._core.scheduler, self._core.runner.compiler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_preempted=sum(seq.receipt.preemptions > 0 for seq in scheduler.waiting.copy()),
            num_grammar_queue=self._loop.num_grammar_queue,
            counters=dataclasses.replace(scheduler.counters),
            cache=scheduler.cache.stats(),
            num_steps_compiled=compiler.num_ready,
            num_compiled_by_kind=compiler.num_by_kind,
            all_compiled=compiler.complete,
            num_late_compiles=compiler.num_late,
            num_integrity_failures=self._loop.num_integrity_failures,
            weight_version=self._loop.weight_version,
            is_paused=self._loop.is_paused,
        )

    def metrics(self, model_name: str | None = None) -> str:
        """The page for Prometheus. Does not wait for the step at work, so that it also tells of one that hangs.

        Args:
          model_name: what the model is called on it; default: as in `info`.
        """
        return self._metrics.render(self.info, self.stats_now(), model_name or self.info.model_name)

    def live(self, max_nodes: int) -> LiveSnapshot:
        """What people look at, taken between two steps, with at most `max_nodes` nodes of the prefix tree."""
        scheduler = self._core.scheduler
        return self._loop.call(lambda: take_live_snapshot(scheduler, self.stats_now(), max_nodes))

    def step_report(self) -> StepReport | None:
        """The step at work and for how long, None when idle. Never waits, so that it tells of a step that hangs."""
        return None if self._loop.is_paused else self._core.report()

    def flush_cache(self) -> int:
        """Forgets every cached prefix that no running request uses; returns the pages freed."""
        return self._loop.call(self._core.scheduler.cache.flush)

    def check(self) -> None:
        """Raises AssertionError unless every page and slot is accounted for."""
        self._loop.call(self._core.scheduler.check)

    def pause(self, mode: PauseMode = "in_place") -> None:
        """Stops stepping until `resume`; new requests wait. Pausing twice is fine.

        Args:
          mode: what becomes of running requests. "abort" ends them, "retract" puts them back in the queue with their
            work in the cache, "in_place" holds them as they are.
        """

        def stop() -> None:
            if mode == "abort":
                self._loop.abort_requests(None)
            elif mode == "retract":
                self._retract()
            self._loop.is_paused = True

        self._loop.call(stop)

    def resume(self) -> None:
        """Goes on after `pause`."""

        def go_on() -> None:
            self._loop.is_paused = False

        self._loop.call(go_on)

    def _retract(self) -> None:
        self._loop.deliver(self._core.retract())

    def update_weights(self, model_path: str, weight_version: str | None = None) -> str:
        """Puts another checkpoint of the same architecture in place of the weights, and forgets the cache.

        Old and new weights are in memory together for a moment. Running requests go on with the new weights: what they
        have computed is computed again.

        Returns:
          The version that receipts report from now on: the one given, or the path.

        Raises:
          RequestError: the checkpoint cannot be read or is not of this architecture; the old weights go on serving.
        """
        version = weight_version or model_path
        with self._weights_lock:
            params = self._load_params(model_path)
            self._loop.call(lambda: self._swap_params(params, version))
        return version

    def _load_params(self, model_path: str) -> Params:
        try:
            loaded = load_model(self.config.replace(model_path=model_path, load_format="auto"))
        except (CheckpointError, ModelError, ConfigError, OSError) as error:
            raise RequestError("model_path", str(error)) from None
        if loaded.config != self._core.runner.model.config:
            raise RequestError("model_path", f"{model_path} is not of the architecture and sizes that are served")
        return loaded.params

    def _swap_params(self, params: Params, version: str) -> None:
        runner = self._core.runner
        self._retract()
        self._core.scheduler.cache.flush()
        runner.model = dataclasses.replace(runner.model, params=params)
        self._loop.weight_version = version

    def start_profile(self, output_dir: str) -> None:
        """Begins a trace that TensorBoard and Perfetto read. Raises RequestError when one is running."""
        try:
            jax.profiler.start_trace(output_dir)
        except (RuntimeError, OSError) as error:
            raise RequestError("output_dir", str(error)) from None

    def stop_profile(self) -> None:
        """Writes the trace. Raises RequestError when none is running."""
        try:
            jax.profiler.stop_trace()
        except RuntimeError as error:
            raise RequestError("profile", str(error)) from None

    def wait_until_compiled(self) -> None:
        """Until the background has compiled every bucket."""
        self._core.runner.compiler.wait()

    def close(self) -> None:
        """Stops after the step at hand. Open requests get an `EngineError`. Closing twice is fine."""
        self._shut_down()
        atexit.unregister(self._shut_down)


def _shut_down(loop: EngineLoop, grammars: GrammarCompiler, runner: Runner) -> None:
    loop.close()
    grammars.close()
    runner.close()
