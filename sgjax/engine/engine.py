"""`Engine`: a model, ready to generate. For scripts in process; the HTTP server uses the same object."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
from tqdm import tqdm

from sgjax.closing import closed_at_exit
from sgjax.config import EngineConfig
from sgjax.engine.build import build_core
from sgjax.engine.outputs import OutputProcessor, RequestHandle
from sgjax.engine.token_engine import TokenEngine
from sgjax.kernels import Choices, describe
from sgjax.types import GenerateOutput, Request, RequestError, SamplingParams

Messages = Seq[Mapping[str, Any]]
Params = SamplingParams | Mapping[str, Any] | None


class Engine(TokenEngine):
    """Generates text with one model.

        with sgjax.Engine("embedded") as engine:
            print(engine.generate("The capital of France is").text)

    Construction loads the model and compiles the first steps; the other buckets are compiled in the background. All
    methods may be called from any thread.

    Args:
      model_path: checkpoint folder, GGUF file, hub id or "embedded".
      kernels: as the setting of that name, or a mapping of operations to names and functions of your own.
      on_progress: called with a label and a fraction in [0, 1] while loading and compiling.
      **config: fields of `EngineConfig`.

    Raises:
      ConfigError, CheckpointError: what cannot be served, with the field or the file.
    """

    def __init__(
        self,
        model_path: str = "embedded",
        *,
        kernels: Choices = "*=auto",
        on_progress: Callable[[str, float], None] | None = None,
        **config: Any,
    ):
        settings = EngineConfig(model_path=model_path, kernels=describe(kernels), **config)
        built = build_core(settings, on_progress or (lambda label, fraction: None), kernels)
        self.model_config = built.model_config
        self.tokenizer = built.tokenizer
        self._outputs = OutputProcessor(built.tokenizer)
        super().__init__(built, self._outputs)

    # --- requests ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, *, bounded: bool = True) -> RequestHandle:
        """Validates and queues a request; returns at once.

        Inside a running event loop the handle is for `async for`, elsewhere for `for`.

        Args:
          bounded: refuse when `max_queued_requests` are waiting, or `max_tokens_in_flight` would be exceeded.

        Raises:
          RequestError: the request could never run; names the field. A refused grammar is raised by the handle,
            since grammars are compiled after this returns.
          QueueFull: too many are waiting, or in flight.
          EngineError: the engine has failed or is closed.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        return self._submit(request, loop, bounded)

    def _submit(self, request: Request, loop: asyncio.AbstractEventLoop | None, bounded: bool) -> RequestHandle:
        handle = RequestHandle(request, loop)
        self.submit_tokens(request, self._outputs.open(handle), bounded=bounded)
        return handle

    # --- generating -------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Seq[str] | None = None,
        sampling_params: Params | Seq[Params] = None,
        *,
        input_ids: Seq[int] | Seq[Seq[int]] | None = None,
        messages: Messages | Seq[Messages] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """Generates for one prompt or many, given as text, token ids or chat messages (exactly one of the three).

        Args:
          sampling_params: one for all or one for each; `SamplingParams` or a dict of its fields.
          progress: shows a progress bar.
          **options: further fields of `Request` (return_logprob, top_logprobs_num, extra_key, ...), for all prompts.

        Returns:
          A `GenerateOutput` for a single prompt with n = 1, else a list of them, prompt by prompt.
        """
        requests, single = self._requests(prompts, input_ids, messages, sampling_params, options)
        handles: list[RequestHandle] = []
        outputs: list[GenerateOutput] = []
        try:
            # One by one, so that those before a refused one are known below.
            handles.extend(self._submit(request, None, bounded=False) for request in requests)
            with tqdm(total=len(handles), disable=not progress, unit="prompt") as bar:
                for handle in handles:
                    outputs += _collect(handle.request, handle)
                    bar.update()
        except BaseException:  # neither an interrupt nor one bad prompt may leave the others running
            for handle in handles:
                self.abort(handle.request.rid)
            raise
        return outputs[0] if single and len(outputs) == 1 else outputs

    async def async_generate(
        self,
        prompts: str | Seq[str] | None = None,
        sampling_params: Params | Seq[Params] = None,
        *,
        input_ids: Seq[int] | Seq[Seq[int]] | None = None,
        messages: Messages | Seq[Messages] | None = None,
        **options: Any,
    ) -> Any:
        """`generate` for an event loop. Cancelling it aborts its requests."""
        requests, single = self._requests(prompts, input_ids, messages, sampling_params, options)
        handles: list[RequestHandle] = []
        outputs: list[GenerateOutput] = []
        try:
            handles.extend(self.submit(request, bounded=False) for request in requests)
            for handle in handles:
                found = _new_outputs(handle.request)
                async for delta in handle:
                    found[delta.index].add(delta)
                outputs += found
        except BaseException:
            for handle in handles:
                self.abort(handle.request.rid)
            raise
        return outputs[0] if single and len(outputs) == 1 else outputs

    def stream(
        self, prompt: str | None = None, sampling_params: Params = None, **options: Any
    ) -> Iterator[GenerateOutput]:
        """Yields the output so far after every step, for one prompt (text, `input_ids=` or `messages=`).

        With n > 1, outputs of different samples interleave; `index` tells them apart. Leaving early aborts.
        """
        return closed_at_exit(self._stream(self._single_request(prompt, sampling_params, options)))

    def _stream(self, request: Request) -> Generator[GenerateOutput]:
        outputs = _new_outputs(request)
        handle = self._submit(request, None, bounded=True)
        try:
            for delta in handle:
                outputs[delta.index].add(delta)
                yield outputs[delta.index]
        finally:
            self._abort_unfinished(request, outputs)

    async def async_stream(
        self, prompt: str | None = None, sampling_params: Params = None, **options: Any
    ) -> AsyncIterator[GenerateOutput]:
        """`stream` for an event loop."""
        request = self._single_request(prompt, sampling_params, options)
        outputs = _new_outputs(request)
        handle = self.submit(request)
        try:
            async for delta in handle:
                outputs[delta.index].add(delta)
                yield outputs[delta.index]
        finally:
            self._abort_unfinished(request, outputs)

    def _abort_unfinished(self, request: Request, outputs: list[GenerateOutput]) -> None:
        if any(output.finish is None for output in outputs):  # else the rid may be somebody else's by now
            self.abort(request.rid)

    def score(
        self, query: str, items: Seq[str], label_token_ids: Seq[int], *, apply_softmax: bool = True
    ) -> list[list[float]]:
        """How likely each label token is right after `query + item`.

        Returns:
          One list per item, in the order of `label_token_ids`: probabilities over the labels alone with
          `apply_softmax`, else over the whole vocabulary.
        """
        outputs = self.generate(
            [query + item for item in items],
            SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True),
            return_logprob=True,
            token_ids_logprob=tuple(label_token_ids),
        )
        scores = np.exp([[value for _, value in output.output_logprobs[0].asked] for output in outputs])
        if apply_softmax:
            scores /= scores.sum(axis=-1, keepdims=True)
        return scores.tolist()

    def _single_request(self, prompt: str | None, sampling_params: Params, options: dict[str, Any]) -> Request:
        input_ids, messages = options.pop("input_ids", None), options.pop("messages", None)
        requests, single = self._requests(prompt, input_ids, messages, sampling_params, options)
        if not single:
            raise RequestError("prompt", "stream takes one prompt")
        return requests[0]

    def _requests(self, prompts: Any, input_ids: Any, messages: Any, params: Any, options: dict[str, Any]):
        """Requests, and whether a single prompt was given."""
        given = [value is not None for value in (prompts, input_ids, messages)]
        if sum(given) != 1:
            raise RequestError("prompts", "give exactly one of prompts, input_ids and messages")
        if prompts is not None:
            single = isinstance(prompts, str)
            ids = [self.tokenizer.encode(text) for text in ([prompts] if single else prompts)]
        elif input_ids is not None:
            single = len(input_ids) == 0 or not isinstance(input_ids[0], (Seq, np.ndarray))
            ids = [input_ids] if single else input_ids
        else:
            single = len(messages) == 0 or isinstance(messages[0], Mapping)
            ids = [self.tokenizer.encode_chat(chat) for chat in ([messages] if single else messages)]
        each = params if isinstance(params, (list, tuple)) else [params] * len(ids)
        if len(each) != len(ids):
            raise RequestError("sampling_params", f"{len(each)} given for {len(ids)} prompts")
        return [self._request(prompt, param, options) for prompt, param in zip(ids, each, strict=True)], single

    def _request(self, ids: Iterable[int], params: Params, options: dict[str, Any]) -> Request:
        if params is None:
            params = SamplingParams()
        elif not isinstance(params, SamplingParams):
            params = SamplingParams.from_dict(params)
        rid = options.get("rid") or uuid.uuid4().hex
        return Request(**{**options, "rid": rid, "input_ids": tuple(map(int, ids)), "sampling": params})

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _new_outputs(request: Request) -> list[GenerateOutput]:
    return [GenerateOutput(request.rid, i, request.input_ids) for i in range(request.sampling.n)]


def _collect(request: Request, deltas: Iterable) -> list[GenerateOutput]:
    outputs = _new_outputs(request)
    for delta in deltas:
        outputs[delta.index].add(delta)
    return outputs
