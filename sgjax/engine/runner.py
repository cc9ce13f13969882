"""Runs packed steps on the device: launches without waiting, collects later."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgjax.cache.kv import make_kv_cache
from sgjax.engine.buckets import Buckets
from sgjax.engine.compiler import StepCompiler
from sgjax.engine.lowering import CountsKey, ForwardKey, Lowering, MaskKey, PromptKey, SampleKey, all_keys, first_keys
from sgjax.engine.packing import PackedStep, PenaltyValues, SamplingValues
from sgjax.engine.sequence import Sequence
from sgjax.engine.sharing import SharedPrefixValues
from sgjax.kernels import Ops
from sgjax.layers.batch import ForwardBatch, SharedPrefixes
from sgjax.layers.sampling import PenaltyRows, SamplingRows, TokenCounts, count_tokens
from sgjax.models.loader import LoadedModel


@dataclasses.dataclass(slots=True)
class StepHandle:
    """A launched step: `row_logits` until it samples, then device arrays whose copies to the host are under way."""

    step: PackedStep
    row_logits: jax.Array | None
    tokens: Any = None
    logprobs: Any = None
    prompt_logprobs: Any = None

    @property
    def is_sampled(self) -> bool:
        return self.tokens is not None


@dataclasses.dataclass(slots=True)
class StepResult:
    """A collected step: numpy arrays; log-probabilities as `sgjax.layers.sampling.Logprobs` of them."""

    tokens: np.ndarray
    logprobs: Any = None
    prompt_logprobs: Any = None


class Runner:
    """Owns the device state: parameters, KV pool, newest token and token counts by slot.

    Args:
      num_slots: running sequences at most; slot `num_slots` stands for padding and does not exist on the device.
    """

    def __init__(
        self,
        model: LoadedModel,
        ops: Ops,
        buckets: Buckets,
        *,
        num_slots: int,
        num_pages: int,
        page_size: int,
        kv_dtype: str,
    ):
        self.model = model
        self.buckets = buckets
        self._cache = make_kv_cache(model.config.kv_specs, num_pages, page_size, kv_dtype)
        self._last_token = jnp.zeros(num_slots, jnp.int32)
        self._counts = TokenCounts.zeros(num_slots, model.config.vocab_size)
        lowering = Lowering(
            model, ops, num_slots=num_slots, num_pages=num_pages, page_size=page_size, kv_dtype=kv_dtype
        )
        self.compiler = StepCompiler(lowering.compile)

    @property
    def waited_s(self) -> float:
        """How long steps have waited for executables in all."""
        return self.compiler.waited_s

    # --- running ----------------------------------------------------------------------------------------------

    def launch(self, step: PackedStep) -> StepHandle:
        """Starts a step's forward pass; returns before it has run. `sample` must follow, before the next launch."""
        shape = step.decode, len(step.token_ids), len(step.kv_lens), step.page_table.shape[1]
        key = ForwardKey(*shape, 0 if step.shared is None else len(step.shared.lens))
        if step.shared is not None and self.compiler.is_pending(key):  # a saving is not worth waiting for
            key, step.shared = ForwardKey(*shape), None
        forward = self.compiler.get(key)
        self._cache, row_logits, hidden = forward(
            self.model.params, self._cache, self._last_token, _forward_batch(step), step.slots
        )
        handle = StepHandle(step, row_logits)
        if step.prompt_targets is not None:
            prompt = self.compiler.get(PromptKey(len(step.token_ids)))
            handle.prompt_logprobs = prompt(self.model.params, hidden, step.prompt_targets, step.prompt_asked)
        return handle

    def sample(self, handle: StepHandle) -> None:
        """Starts the second half of a launched step: its tokens, masked where the step has a mask."""
        step, raw_logits, handle.row_logits = handle.step, handle.row_logits, None
        assert raw_logits is not None
        for seq in step.new_counts:
            self._reset_counts(seq)
        row_logits = raw_logits
        if step.mask is not None:
            row_logits = self.compiler.get(MaskKey(len(step.slots)))(raw_logits, step.mask)
        handle.tokens, handle.logprobs = self._launch_sample(step, row_logits, raw_logits)
        for leaf in jax.tree.leaves((handle.tokens, handle.logprobs, handle.prompt_logprobs)):
            leaf.copy_to_host_async()

    def _launch_sample(self, step: PackedStep, row_logits: jax.Array, raw_logits: jax.Array) -> tuple[Any, Any]:
        rows = penalties = counts = None
        if step.sampling is not None:
            rows = SamplingRows(**_fields(step.sampling))
        if step.penalties is not None:
            penalties, counts = PenaltyRows(**_fields(step.penalties)), self._counts
        key = SampleKey(len(step.slots), rows is not None, penalties is not None, step.asked_ids is not None)
        self._last_token, tokens, counts, logprobs = self.compiler.get(key)(
            row_logits,
            None if step.asked_ids is None else raw_logits,
            self._last_token,
            step.slots,
            rows,
            penalties,
            counts,
            step.asked_ids,
        )
        if counts is not None:
            self._counts = counts
        return tokens, logprobs

    def _reset_counts(self, seq: Sequence) -> None:
        prompt, output = seq.tokens[: seq.num_prompt], seq.tokens[seq.num_prompt : seq.num_tokens]
        output_counts, in_prompt = count_tokens(prompt.tolist(), output.tolist(), self.model.config.vocab_size)
        set_counts = self.compiler.get(CountsKey())
        self._counts = set_counts(self._counts, np.int32(seq.slot), output_counts, in_prompt)

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a launched step and brings its results to the host."""
        return StepResult(
            np.asarray(handle.tokens),
            jax.tree.map(np.asarray, handle.logprobs),
            jax.tree.map(np.asarray, handle.prompt_logprobs),
        )

    def warm_up(self, on_progress: Callable[[str, float], None]) -> None:
        """Compiles what one short request needs now, and the other buckets in the background."""
        first = first_keys(self.buckets)
        self.compiler.warm_up(first, [key for key in all_keys(self.buckets) if key not in first], on_progress)

    def close(self) -> None:
        """Stops compiling and waits for the steps that were launched: they must not outlive the interpreter."""
        self.compiler.close()
        with contextlib.suppress(RuntimeError):  # a step that failed has no results to wait for
            jax.block_until_ready((self._cache, self._last_token, self._counts))


def _fields(values: SamplingValues | PenaltyValues | SharedPrefixValues) -> dict[str, Any]:
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


def _forward_batch(step: PackedStep) -> ForwardBatch:
    arrays: Any = {  # numpy; they go to the device with the call
        field.name: getattr(step, field.name) for field in dataclasses.fields(ForwardBatch)
    }
    if step.shared is not None:
        arrays["shared"] = SharedPrefixes(**_fields(step.shared))
    return ForwardBatch(**arrays)
