"""An engine that says what it is told, with the interface of `ServedEngine`."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

from sgjax.cache.manager import CacheManager, CacheStats
from sgjax.config import EngineConfig
from sgjax.engine import EngineInfo, EngineStats, LiveSnapshot
from sgjax.engine.batch import SchedulerCounters
from sgjax.engine.outputs import Arrival, RequestHandle
from sgjax.errors import EngineError
from sgjax.types import (
    FinishReason,
    GrammarSpec,
    OutputDelta,
    PromptParts,
    QueueFull,
    Receipt,
    Request,
    RequestError,
    TokenLogprobs,
)

EOS, BOS = 0, 1


class FakeTokenizer:
    """One token per byte; EOS is 0, BOS 1. Chat prompts look like "user:hi|assistant:".

    Attributes:
      rendered: the messages and options of the last chat.
    """

    special_tokens: Mapping[str, str] = {"eos_token": "</s>"}
    eos_token_ids = (EOS,)
    bos_token_id = BOS

    def __init__(self, chat_template: str = "{{ messages }}", special: Sequence[str] = ()):
        self.chat_template = chat_template
        self.chat_templates = {"default": chat_template}
        self._special = dict(enumerate(special, 1000))
        self.special_token_ids = frozenset({EOS, *self._special})
        self.rendered: tuple[list, dict] = ([], {})

    def template_reads(self, variable: str) -> bool:
        return variable in self.chat_template

    def token_to_id(self, token: str) -> int | None:
        return next((token_id for token_id, text in self._special.items() if text == token), None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("text", "is not valid Unicode") from None

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if len(token_ids) == 1 and token_ids[0] in self._special:
            return "" if skip_special_tokens else self._special[token_ids[0]]
        return bytes(i for i in token_ids if not (skip_special_tokens and i == EOS)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._special[token_id].encode() if token_id in self._special else bytes([token_id])

    def encode_chat(self, messages, *, add_generation_prompt=True, continue_final_message=False, **kwargs):
        self.rendered = (list(messages), kwargs)
        if not all(isinstance(message.get("content"), str) for message in messages):
            raise RequestError("messages", "only text")
        text = "|".join(f"{message['role']}:{message['content']}" for message in messages)
        return self.encode(text + ("|assistant:" if add_generation_prompt else ""))


class FakeHandle(RequestHandle):
    """Deltas from a generator, from when somebody asks for them: one at a time, or as many as `together` says in turn.

    `compile` is what the request's grammar takes before it has started; it may raise.
    """

    def __init__(
        self,
        request: Request,
        deltas: AsyncIterator[OutputDelta],
        together: Sequence[int] = (),
        compile: Callable[[], Awaitable[None]] | None = None,
    ):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        super().__init__(request, loop)
        self._generated = deltas
        self._together = list(together)
        self._compile = compile
        self._generating: asyncio.Task[None] | None = None

    async def started(self) -> None:
        if self._compile is not None:
            await self._compile()

    def deliver_to(self, take: Callable[[Sequence[Arrival]], None]) -> None:
        super().deliver_to(take)
        self._generating = asyncio.create_task(self._generate())

    async def _generate(self) -> None:
        deltas: list[OutputDelta] = []
        try:
            async for delta in self._generated:
                deltas.append(delta)
                if len(deltas) >= (self._together[0] if self._together else 1):
                    del self._together[:1]
                    self.put(*deltas)
                    deltas.clear()
        except Exception as error:
            self.put(error)  # type: ignore[arg-type]

    def wait_started(self) -> None:
        """`started`, for a thread without an event loop."""
        asyncio.run(self.started())

    def __iter__(self) -> Iterator[OutputDelta]:
        async def collected() -> list[OutputDelta]:
            return [delta async for delta in self._generated]

        return iter(asyncio.run(collected()))


class FakeEngine:
    """Answers every prompt with `reply(request)`, one token at a time, then EOS.

    Attributes:
      silent: answers never begin. stuck: they stop after their first token and never end.
      error: raised after the first token. hung: its metrics never come.
      queue_full: every request is refused.
      compiling: grammars are not ready. bad_grammar: this text is refused as one, in its own time.
      end: why answers end, instead of EOS. receipt: every answer's, instead of one that fits.
      prefixes: what is shown as the prefix cache. num_looks: how often it was.
      submitted, aborted: requests and their ids, in order. controls: names and arguments of other calls.
    """

    def __init__(self, reply: Callable[[Request], str] | str = "Hello world"):
        self._reply = reply if callable(reply) else lambda request: reply
        self.generation_defaults: dict = {}
        self.info = EngineInfo(
            config=EngineConfig(context_length=1024),
            model_name="fake",
            architecture="FakeForCausalLM",
            vocab_size=256,
            context_length=1024,
            generation_defaults=self.generation_defaults,
            tokenizer_source="",
            eos_token_ids=(EOS,),
            num_pages=64,
            kv_cache_bytes=2**20,
            startup_s=0.5,
            device="fake",
        )
        self.tokenizer = FakeTokenizer()
        self.is_alive = True
        self.failure: Exception | None = None
        self.silent = False
        self.stuck = False
        self.hung = False
        self.queue_full = False
        self.error: Exception | None = None
        self.compiling = False
        self.bad_grammar: str | None = None
        self.end: FinishReason | None = None
        self.receipt: Receipt | None = None
        self.submitted: list[Request] = []
        self.aborted: list[str] = []
        self.num_flushes = 0
        self.counters = SchedulerCounters()
        self.weight_version = "default"
        self.is_paused = False
        self.prefixes = CacheManager(64, 16)
        self.num_looks = 0
        self.controls: list[tuple] = []
        self.closed = False

    def submit(self, request: Request) -> FakeHandle:
        request.validate(vocab_size=256, context_length=1024, max_total_tokens=4096)
        if self.queue_full:
            raise QueueFull("the queue holds 1 request, its limit")
        self.submitted.append(request)
        compile = functools.partial(self._compile, request.sampling.grammar)
        return FakeHandle(request, self._deltas(request), compile=compile)

    async def _compile(self, grammar: GrammarSpec | None) -> None:
        if grammar is not None:
            await asyncio.sleep(3600 if self.compiling else 0)
            if grammar.text == self.bad_grammar:
                raise RequestError(grammar.kind, "at /properties/a: no such type")

    async def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.submitted),
            num_waiting=2,
            num_grammar_queue=1,
            counters=dataclasses.replace(self.counters),
            cache=CacheStats(
                num_pages=64,
                num_free=40,
                num_cached=14,
                num_evictable=8,
                num_locked=6,
                num_nodes=3,
                num_evicted_pages=0,
            ),
            num_steps_compiled=5,
            all_compiled=True,
            num_late_compiles=0,
            num_integrity_failures=0,
            weight_version=self.weight_version,
            is_paused=self.is_paused,
            num_preempted=0,
            num_compiled_by_kind={},
        )

    async def stats_now(self) -> EngineStats:
        return await self.stats()

    async def metrics(self, model_name: str) -> str:
        if self.hung:
            await asyncio.sleep(3600)
        if self.failure is not None:
            raise EngineError(str(self.failure))
        return f'# TYPE sgjax:num_running_reqs gauge\nsgjax:num_running_reqs{{model_name="{model_name}"}} 0.0\n'

    async def live(self, max_nodes: int) -> LiveSnapshot:
        self.num_looks += 1
        return LiveSnapshot(await self.stats(), (), self.prefixes.snapshot([], max_nodes))

    async def abort_requests(self, rid: str | None = None) -> None:
        self.controls.append(("abort_requests", rid))

    async def flush_cache(self) -> int:
        self.num_flushes += 1
        return 3

    async def pause(self, mode: str) -> None:
        self.is_paused = True
        self.controls.append(("pause", mode))

    async def resume(self) -> None:
        self.is_paused = False
        self.controls.append(("resume",))

    async def update_weights(self, model_path: str, weight_version: str | None = None) -> str:
        if model_path == "missing":
            raise RequestError("model_path", "does not exist")
        self.controls.append(("update_weights", model_path, weight_version))
        self.weight_version = weight_version or model_path
        return self.weight_version

    async def start_profile(self, output_dir: str) -> None:
        self.controls.append(("start_profile", output_dir))

    async def stop_profile(self) -> None:
        self.controls.append(("stop_profile",))

    def abort(self, rid: str, *, own: bool = False) -> bool:
        self.aborted.append(rid)
        return True

    def close(self) -> None:
        self.closed = True

    async def _deltas(self, request: Request) -> AsyncIterator[OutputDelta]:
        max_new = request.sampling.max_new_tokens
        if self.silent:
            await asyncio.sleep(3600)
        reply = [*self._reply(request).encode(), EOS][: 900 if max_new is None else max_new]
        for position in range(max(1, len(reply))):
            for index in range(request.sampling.n):
                yield self._delta(request, index, reply, position)
            if self.error is not None:
                raise self.error
            await asyncio.sleep(3600 if self.stuck else 0)

    def _delta(self, request: Request, index: int, reply: list[int], position: int) -> OutputDelta:
        token_ids = reply[position : position + 1]
        finish = receipt = prompt_logprobs = None
        if position == 0:
            receipt = Receipt(prompt_tokens=len(request.input_ids), completion_tokens=1, cached_tokens=2)
        if position >= len(reply) - 1:
            finish = self.end or (FinishReason("stop", EOS) if EOS in token_ids else FinishReason("length"))
            receipt = self.receipt or Receipt(
                prompt_tokens=len(request.input_ids),
                completion_tokens=len(reply),
                cached_tokens=2,
                forced_tokens=1,
                queue_s=0.1,
                ttft_s=0.2,
                e2e_s=0.5,
                prompt_parts=PromptParts(cached=2, last_token=len(request.input_ids) - 2),
                weight_version=self.weight_version,
            )
        if request.return_logprob and position == 0 and request.logprob_start_len >= 0:
            scored = request.input_ids[request.logprob_start_len :]
            prompt_logprobs = [_logprobs(request, token, first=i == 0) for i, token in enumerate(scored)]
        logprobs = [_logprobs(request, token) for token in token_ids] if request.return_logprob else None
        text = self.tokenizer.decode(token_ids)
        return OutputDelta(request.rid, index, text, token_ids, logprobs, prompt_logprobs, finish, receipt)


def _logprobs(request: Request, token_id: int, *, first: bool = False) -> TokenLogprobs:
    if first:
        return TokenLogprobs(token_id, None)
    top = tuple((65 + i, -1.0 - i) for i in range(request.top_logprobs_num))
    return TokenLogprobs(token_id, -0.5, top, tuple((asked, -9.0) for asked in request.token_ids_logprob))
