"""Scheduler, packer and cache together, on a device of numpy that notices every wrong page.

The device's "model" draws the next token from a hash of all tokens before it, and reads those through the page table
of the packed step, as attention does: a page that was shared wrongly, freed too early or listed in the wrong place
changes the text. Every request must end, with the text that it has alone.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgjax.cache.manager import CacheManager
from sgjax.engine.batch import SchedulerLimits
from sgjax.engine.buckets import Buckets
from sgjax.engine.core import EngineCore
from sgjax.engine.packing import PackedStep, Packer
from sgjax.engine.runner import StepResult
from sgjax.engine.scheduler import Scheduler
from sgjax.engine.sequence import Sequence, Status
from sgjax.engine.sharing import PrefixSharing, SharedPrefixValues
from sgjax.types import FinishReason, Request, SamplingParams, TokenEvent

from .fake_model import VOCAB_SIZE, FakeMatcher, fill_masks, masked_token, mix

PAGE_SIZE = 4
STOP_TOKEN = 3
MAX_PROMPT, MAX_NEW = 30, 20
BASE_PROMPT = (0, 1, 2) * 7  # prompts begin with more or less of it: prefixes in common are what the tree is for


def expected_output(
    prompt: tuple[int, ...], sampling: SamplingParams, matcher: FakeMatcher | None
) -> tuple[list[int], str]:
    """What a request gets when it is alone, and the kind of its end."""
    state, output = 0, []
    for token in prompt:
        state = mix(state, token)
    mask = np.full(1, -1, np.int32)
    while len(output) < (sampling.max_new_tokens or 0):
        if matcher is not None:
            matcher.fill(mask)
            if matcher.error:
                return output, "abort"
        output.append(masked_token(state, int(mask[0])))
        state = mix(state, output[-1])
        if output[-1] in sampling.stop_token_ids and len(output) > sampling.min_new_tokens:
            return output, "stop"
        if matcher is not None:
            matcher.accept(output[-1])
            if matcher.is_stopped:
                return output, "abort" if matcher.error else "stop"
    return output, "length"


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request, before it is cut to what the pool can hold."""

    num_shared: int
    own_tokens: list[int]
    max_new_tokens: int
    min_new_tokens: int
    stops: bool
    num_samples: int
    prompt_logprobs: bool
    extra_key: str
    priority: int
    grammar_seed: int | None
    jumps: bool


REQUESTS = st.builds(
    Ask,
    num_shared=st.integers(0, len(BASE_PROMPT)),
    own_tokens=st.lists(st.integers(0, 2), max_size=MAX_PROMPT - len(BASE_PROMPT)),
    max_new_tokens=st.integers(0, MAX_NEW),
    min_new_tokens=st.integers(0, 3),
    stops=st.sampled_from([False, False, True]),
    num_samples=st.sampled_from([1, 1, 1, 2]),
    prompt_logprobs=st.sampled_from([False, False, False, True]),  # they forbid hits, so that pages come twice
    extra_key=st.sampled_from(["", "", "", "tenant"]),
    priority=st.integers(0, 2),
    grammar_seed=st.none() | st.integers(0, 2**40),
    jumps=st.sampled_from([True, True, False]),
)


@dataclasses.dataclass
class FakeHandle:
    step: PackedStep
    states: list[int | None]
    tokens: np.ndarray | None = None

    @property
    def is_sampled(self) -> bool:
        return self.tokens is not None


class FakeRunner:
    """Keeps, per token in a page, the token and the state after it. Steps run at launch, results are read later."""

    waited_s = 0.0

    def __init__(self, num_pages: int, num_slots: int):
        self.tokens = [-1] * (num_pages * PAGE_SIZE)
        self.states = [-1] * (num_pages * PAGE_SIZE)
        self.last_token = [-1] * num_slots

    def launch(self, step: PackedStep) -> FakeHandle:
        handle = FakeHandle(step, [None] * len(step.slots))
        if step.shared is not None:
            self.check_groups(step, step.shared)
        for row in np.flatnonzero(step.kv_lens):
            begin, end = (int(step.q_starts[row + i]) for i in (0, 1))
            assert begin < end, "a row without a token has no logits"
            slot = int(step.slots[row])
            for at in range(begin, end):
                token = self.last_token[slot] if step.decode else int(step.token_ids[at])
                position = int(step.positions[at])
                assert position == step.kv_lens[row] - (end - at)
                state = self.read(step.page_table[row], position)
                self.tokens[step.kv_index[at]], self.states[step.kv_index[at]] = token, mix(state, token)
            handle.states[row] = self.read(step.page_table[row], int(step.kv_lens[row]))
        return handle

    def check_groups(self, step: PackedStep, shared: SharedPrefixValues) -> None:
        """What a group shares must be in the same pages, and end before the newest token of each of its rows."""
        for begin, end, length in zip(shared.starts[:-1], shared.starts[1:], shared.lens, strict=True):
            assert begin <= end
            prefixes = step.page_table[begin:end, : length // PAGE_SIZE]
            assert (prefixes == prefixes[:1]).all()
            assert (step.kv_lens[begin:end] > length).all()

    def sample(self, handle: FakeHandle) -> None:
        assert handle.tokens is None
        step = handle.step
        handle.tokens = np.zeros(len(step.slots), np.int32)
        for row, state in enumerate(handle.states):
            if state is not None:
                mask = -1 if step.mask is None else int(step.mask[row, 0])
                handle.tokens[row] = masked_token(state, mask)
                if step.slots[row] < len(self.last_token):
                    self.last_token[step.slots[row]] = int(handle.tokens[row])

    def read(self, pages: np.ndarray | list[int], kv_len: int) -> int:
        """The state after `kv_len` tokens, every one of which must stand where the page table says."""
        state = 0
        for position in range(kv_len):
            index = int(pages[position // PAGE_SIZE]) * PAGE_SIZE + position % PAGE_SIZE
            state = mix(state, self.tokens[index])
            assert self.states[index] == state, f"position {position} holds the KV of something else"
        return state

    def collect(self, handle: FakeHandle) -> StepResult:
        assert handle.tokens is not None
        return StepResult(handle.tokens)


@dataclasses.dataclass
class Client:
    """What one sample's reader has seen."""

    request: Request
    output: list[int] = dataclasses.field(default_factory=list)
    finish: FinishReason | None = None
    stopped: bool = False  # from outside
    grammar: tuple[int, int] | None = None  # seed, longest output


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_pages=st.integers(2, 16),
        max_running=st.integers(2, 6),
        chunk_tokens=st.sampled_from([1, 3, 8, 64]),
        prefill_rows=st.integers(1, 4),
        policy=st.sampled_from(["lpm", "fcfs", "priority"]),
        overlap=st.booleans(),
        enabled=st.sampled_from([True, True, True, False]),
    )
    def build(self, num_pages, max_running, chunk_tokens, prefill_rows, policy, overlap, enabled):
        context = min(num_pages * PAGE_SIZE, MAX_PROMPT + MAX_NEW)
        self.context_length = context
        self.now_s = 0.0
        self.cache = CacheManager(num_pages, PAGE_SIZE, enabled)
        limits = SchedulerLimits(
            max_running=max_running,
            chunk_tokens=chunk_tokens,
            prefill_rows=prefill_rows,
            policy=policy,
            aging_s=50.0,
        )
        self.scheduler = Scheduler(self.cache, limits, clock=lambda: self.now_s)
        max_pages = -(-context // PAGE_SIZE)
        buckets = Buckets.make(
            max_running=max_running,
            chunk_tokens=chunk_tokens,
            prefill_rows=prefill_rows,
            max_pages=max_pages,
            min_pages=1,
        )
        packer = Packer(
            buckets,
            max_running=max_running,
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            vocab_size=VOCAB_SIZE,
            sharing=PrefixSharing(PAGE_SIZE, min_saved_tokens=1),
            fill_masks=fill_masks,
        )
        self.runner = FakeRunner(num_pages, max_running)
        self.core = EngineCore(self.scheduler, packer, self.runner, overlap=overlap)  # type: ignore[arg-type]
        self.clients: dict[tuple[str, int], Client] = {}
        self.rids = itertools.count()

    @rule(burst=st.lists(REQUESTS, min_size=1, max_size=6))
    def submit(self, burst: list[Ask]):
        for ask in burst:
            room = self.context_length - 1
            prompt = (*BASE_PROMPT[: min(ask.num_shared, room)], *ask.own_tokens)[:room] or (0,)
            max_new_tokens = min(ask.max_new_tokens, self.context_length - len(prompt))
            sampling = SamplingParams(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min(ask.min_new_tokens, max_new_tokens) if ask.grammar_seed is None else 0,
                stop_token_ids=(STOP_TOKEN,) if ask.stops else (),
                temperature=0,
                n=ask.num_samples,
            )
            rid = str(next(self.rids))
            request = Request(
                rid=rid,
                input_ids=prompt,
                sampling=sampling,
                return_logprob=ask.prompt_logprobs,
                logprob_start_len=0 if ask.prompt_logprobs else -1,
                extra_key=ask.extra_key,
                priority=ask.priority,
            )
            capacity = self.cache.num_pages * PAGE_SIZE
            request.validate(vocab_size=VOCAB_SIZE, context_length=self.context_length, max_total_tokens=capacity)
            for index in range(ask.num_samples):
                client = self.clients[rid, index] = Client(request)
                seq = Sequence(
                    request,
                    index,
                    seed=0,
                    stop_ids=frozenset(sampling.stop_token_ids),
                    context_length=self.context_length,
                    arrival_s=self.now_s,
                )
                if ask.grammar_seed is not None:
                    client.grammar = ask.grammar_seed + index, 4 + ask.grammar_seed % MAX_NEW
                    seq.constrain(FakeMatcher(*client.grammar), jump_forward=ask.jumps)  # type: ignore[arg-type]
                self.core.add(seq)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int):
        for _ in range(num_steps):
            self.one_step()

    def one_step(self):
        self.now_s += 1.0
        self.receive(self.core.step())
        self.accounts_add_up()

    def receive(self, events: list[TokenEvent]):
        for event in events:
            client = self.clients[event.rid, event.index]
            assert client.finish is None, "an event after the end"
            client.output += event.token_ids
            client.finish = event.finish
            if event.finish is not None:
                self.receipt_explains_the_prompt(client, event)

    def receipt_explains_the_prompt(self, client: Client, event: TokenEvent):
        receipt = event.receipt
        assert receipt is not None
        if receipt.prompt_parts is None:
            assert receipt.steps == 0
            return
        parts = dataclasses.asdict(receipt.prompt_parts)
        assert sum(parts.values()) == receipt.prompt_tokens == len(client.request.input_ids)
        assert min(parts.values()) >= 0
        assert parts["cached"] + parts["shared_in_flight"] == receipt.cached_tokens
        assert parts["page_remainder"] + parts["last_token"] <= PAGE_SIZE
        if not self.cache.enabled:
            assert parts["cached"] == parts["not_in_cache"] == parts["evicted"] == 0
        if not client.request.return_logprob:
            assert parts["logprobs_recomputed"] == 0
        if not self.cache.stats().num_evicted_pages:
            assert parts["evicted"] == 0

    @precondition(lambda self: self.live())
    @rule(data=st.data(), whole_request=st.booleans())
    def stop_from_outside(self, data, whole_request: bool):
        """An abort, or a stop string that the output processor found."""
        rid, index = data.draw(st.sampled_from(self.live()))
        concerned = [key for key in self.live() if key[0] == rid and (whole_request or key[1] == index)]
        events = self.core.finish(rid, None if whole_request else index, FinishReason("abort"))
        assert sorted((event.rid, event.index) for event in events) == sorted(concerned)
        for key in concerned:
            self.clients[key].stopped = True
        self.receive(events)

    @rule()
    def flush(self):
        self.cache.flush()

    @rule()
    def retract(self):
        """As for a pause, or new weights."""
        self.receive(self.core.retract())
        assert not self.scheduler.running

    def live(self) -> list[tuple[str, int]]:
        return [key for key, client in self.clients.items() if client.finish is None]

    @rule()
    def everybody_finishes(self):
        """Within a bounded number of steps, with the right tokens; then nothing is held."""
        bound = 20 + 4 * sum(
            len(self.clients[key].request.input_ids) + MAX_NEW + self.cache.num_pages for key in self.live()
        )
        for _ in range(bound):
            if not self.core.has_work:
                break
            self.one_step()
        assert not self.core.has_work, f"after {bound} steps: {self.scheduler.running}, {self.scheduler.waiting}"
        assert self.cache.num_available == self.cache.num_pages
        assert not self.live()
        for client in self.clients.values():
            matcher = None if client.grammar is None else FakeMatcher(*client.grammar)
            expected, ending = expected_output(client.request.input_ids, client.request.sampling, matcher)
            assert client.finish is not None
            if client.stopped:
                assert client.output == expected[: len(client.output)]
                continue
            assert client.output == expected
            assert client.finish.kind == ending

    def teardown(self):
        if hasattr(self, "core"):
            self.everybody_finishes()

    @invariant()
    def accounts_add_up(self):
        if not hasattr(self, "core"):
            return
        self.scheduler.check()
        shared: dict[int, str] = {}
        for seq in self.scheduler.running:
            assert seq.status is Status.RUNNING
            assert seq.prefix is not None
            num_shared = len(seq.prefix.pages)
            assert seq.pages[:num_shared] == seq.prefix.pages
            assert seq.num_computed <= len(seq.pages) * PAGE_SIZE
            assert seq.num_computed <= seq.num_tokens
            for page in seq.pages[:num_shared]:
                assert shared.setdefault(page, seq.request.extra_key) == seq.request.extra_key
            state = 0
            for token in seq.tokens[: seq.num_computed]:
                state = mix(state, int(token))
            assert self.runner.read(seq.pages, seq.num_computed) == state
        for seq in self.scheduler.waiting:
            assert not seq.pages
            assert seq.slot == -1


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=50, stateful_step_count=15, deadline=None)
