"""Gives expressions their effect on one state, through a backend."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sgjax.errors import RequestAborted
from sgjax.lang import ir
from sgjax.lang.backends.base import Backend, Completion, EndsEarly
from sgjax.lang.executor import Executor
from sgjax.lang.reasoning import separate
from sgjax.lang.sampling import NOTHING_GIVEN
from sgjax.lang.speculation import ChatSpeculation, CompletionSpeculation
from sgjax.lang.task import Failure, Snapshot, Task
from sgjax.lang.transcript import Transcript
from sgjax.lang.usage import UsageCounter, usage_of


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a program runs.

    Attributes:
      defaults: sampling where `gen` gives nothing.
      stream: generations become visible as they grow.
      threaded: generations run in the background.
      num_api_spec_tokens: ask an API once for several generations (`speculation.py`).
    """

    defaults: ir.Sampling = NOTHING_GIVEN
    stream: bool = False
    threaded: bool = True
    num_api_spec_tokens: int | None = None


class Interpreter:
    """One state's executor, and what expressions do with it."""

    def __init__(self, backend: Backend, options: RunOptions, usage: UsageCounter | None = None):
        self.backend = backend
        self.options = options
        self.executor = Executor(Transcript(backend.chat_format), threaded=options.threaded, usage=usage)
        if isinstance(backend, EndsEarly):
            self.backend = backend.until(self._has_failed)
        self._forks_lock = threading.Lock()
        self._forks: weakref.WeakSet[Interpreter] = weakref.WeakSet()
        self._scopes: list[tuple[str, int]] = []  # open ones, and where in the text they begin
        self._prefilled = ""  # the text that a request of this state has put in the prefix cache
        self._speculation: CompletionSpeculation | None = None
        self._chat_speculation: ChatSpeculation | None = None
        self._turn_names: tuple[str, ...] | None = None  # what an open turn, asked for at its end, will set
        if options.num_api_spec_tokens is not None:
            if backend.is_chat_model:
                self._chat_speculation = ChatSpeculation(options.num_api_spec_tokens)
            else:
                self._speculation = CompletionSpeculation(options.num_api_spec_tokens)

    def _has_failed(self) -> bool:
        return self.executor.error is not None

    def cancel(self) -> None:
        """Ends what this state and its forks have under way."""
        self.executor.cancel()
        with self._forks_lock:
            forks = list(self._forks)
        for fork in forks:
            fork.cancel()

    # --- appending --------------------------------------------------------------------------------------------

    def submit(self, expr: ir.Expr) -> None:
        """Queues an expression; returns before it has been generated."""
        for item in ir.items_of(expr):
            self.executor.submit(
                Task(partial(self._run, item), _describe(item), self._variables_set(item), self._is_instant(item))
            )

    def _variables_set(self, item: ir.Expr) -> tuple[str, ...]:
        """With a chat API that is asked once a turn, variables get their values at its end."""
        if self._chat_speculation is None:
            return ir.variables_set(item)
        match item:
            case ir.RoleBegin("assistant"):
                self._turn_names = ()
            case ir.Gen(str(name)) if self._turn_names is not None:
                self._turn_names = (*self._turn_names, name)
                return ()
            case ir.RoleEnd("assistant"):
                names, self._turn_names = self._turn_names or (), None
                return names
        return ir.variables_set(item)

    def _is_instant(self, item: ir.Expr) -> bool:
        if isinstance(item, ir.RoleEnd) and self._chat_speculation is not None:
            return False  # there it generates
        return not isinstance(item, (ir.Gen, ir.Select, ir.SeparateReasoning))

    def _run(self, item: ir.Expr) -> None:
        executor = self.executor
        match item:
            case ir.Text(text):
                self._append(text)
            case ir.Constant(value):
                self._append(str(value))
            case ir.Gen():
                self._generate(item)
            case ir.Select():
                self._select(item)
            case ir.RoleBegin(role):
                executor.edit(lambda transcript: transcript.begin(role))
            case ir.RoleEnd(role):
                self._end_turn(role)
            case ir.Image() | ir.Video():
                executor.edit(lambda transcript: transcript.append_media(item))
            case ir.ScopeBegin(name):
                self._scopes.append((name, len(executor.edit(lambda transcript: transcript.text))))
            case ir.ScopeEnd(name):
                self._end_scope(name)
            case ir.SeparateReasoning():
                self._separate(item)
            case _:
                raise TypeError(f"{item!r} has no value outside of a traced program")

    def _append(self, text: str) -> None:
        if self._chat_speculation is not None and self._in_answer():
            self._chat_speculation.add(text)
            return
        if self._speculation is not None:
            self._speculation.consume(text)
        self.executor.edit(lambda transcript: transcript.append(text))

    def _in_answer(self) -> bool:
        return self.executor.edit(lambda transcript: transcript.role) == "assistant"

    def _end_turn(self, role: str) -> None:
        if role == "assistant" and self._chat_speculation is not None:
            self._finish_chat_turn(self._chat_speculation)
        self.executor.edit(lambda transcript: transcript.end(role))

    def _end_scope(self, name: str) -> None:
        if not self._scopes or self._scopes[-1][0] != name:
            raise ValueError(f"var_scope({name!r}) ends where it is not the last that began")
        _, start = self._scopes.pop()
        self.executor.store(name, self.executor.edit(lambda transcript: transcript.text)[start:])

    # --- generating -------------------------------------------------------------------------------------------

    def _generate(self, item: ir.Gen) -> None:
        sampling = item.sampling.over(self.options.defaults)
        if self._chat_speculation is not None and self._in_answer():
            self._chat_speculation.add(dataclasses.replace(item, sampling=sampling))
        elif self.options.stream and (sampling.n or 1) == 1 and self._speculation is None:
            self._stream(item.name, sampling)
        else:
            self._finish(item.name, self._ask(sampling))

    def _ask(self, sampling: ir.Sampling) -> list[Completion]:
        prompt = self.executor.prompt_seen()
        if self._speculation is not None:
            return self._speculation.generate(sampling, partial(self._count, self.backend.generate, prompt))
        return self._count(self.backend.generate, prompt, sampling)

    def _count(self, generate: Callable[..., list[Completion]], *arguments: Any) -> list[Completion]:
        completions = generate(*arguments)
        self.executor.usage.add(usage_of([completion.meta_info for completion in completions]))
        for completion in completions:
            _check_finished(completion)
        return completions

    def _finish(self, name: str | None, completions: list[Completion]) -> None:
        """One sample is appended. Of several none is, because they are alternatives."""
        if len(completions) == 1:
            text, meta_info = completions[0].text, completions[0].meta_info
            self.executor.edit(lambda transcript: transcript.append(text))
            self.executor.store(name, text, meta_info)
        else:
            texts = [completion.text for completion in completions]
            self.executor.store(name, texts, [completion.meta_info for completion in completions])

    def _stream(self, name: str | None, sampling: ir.Sampling) -> None:
        last = Completion("", {})
        for completion in self.backend.stream(self.executor.prompt_seen(), sampling):
            self.executor.stream_in(name, completion.text[len(last.text) :], completion.meta_info)
            last = completion
        self.executor.usage.add(usage_of([last.meta_info]))
        _check_finished(last)
        self.executor.store(name, last.text, last.meta_info)

    def _select(self, item: ir.Select) -> None:
        if item.temperature > 1e-5:
            raise ValueError("select scores its choices and draws nothing: its temperature must be 0")
        decision = self.backend.select(self.executor.prompt_seen(), item.choices, item.method)
        self.executor.usage.add(usage_of([decision.meta_info]))
        self._append(decision.decision)
        self.executor.store(item.name, decision.decision, decision.meta_info)

    def _separate(self, item: ir.SeparateReasoning) -> None:
        for inner in ir.items_of(item.expr):
            if not isinstance(inner, ir.Gen):
                self._run(inner)
                continue
            completions = self._ask(inner.sampling.over(self.options.defaults))
            parts = [separate(completion.text, item.model_type) for completion in completions]
            answers = [
                dataclasses.replace(completion, text=answer)
                for completion, (_, answer) in zip(completions, parts, strict=True)
            ]
            if inner.name is not None:
                reasoning = [reasoning for reasoning, _ in parts]
                self.executor.store(ir.reasoning_name(inner.name), reasoning if len(parts) > 1 else reasoning[0])
            self._finish(inner.name, answers)

    def _finish_chat_turn(self, speculation: ChatSpeculation) -> None:
        """One request for everything that the turn is to hold."""
        prompt = self.executor.prompt_seen()
        for piece in speculation.finish(partial(self._count, self.backend.generate, prompt)):
            if isinstance(piece, str):
                self.executor.edit(lambda transcript, text=piece: transcript.append(text))
            else:
                self._finish(piece.name, [piece.completion])

    # --- forks ------------------------------------------------------------------------------------------------

    def fork(self, size: int) -> tuple[list[Interpreter], Future[Snapshot]]:
        """Copies that start when everything submitted so far has run; and what they start from.

        Where several will go on from one text, it is put in the prefix cache first, unless it is known to be there.
        """
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"a state is forked into a number of branches, not {size!r}")
        if self._turn_names is not None:
            raise ValueError("with num_api_spec_tokens a chat model's turn cannot be forked before it ends")
        shares = size > 1 and self.backend.has_prefix_cache
        start = self.executor.snapshot_later(self._prefill if shares else None)
        known = self.executor.known_names()
        forks = []
        for _ in range(size):
            fork = Interpreter(self.backend, self.options, UsageCounter(self.executor.usage))
            fork.executor.start_from(start, known)
            with self._forks_lock:
                self._forks.add(fork)
            forks.append(fork)
        return forks, start

    def _prefill(self) -> None:
        prompt = self.executor.edit(lambda transcript: transcript.prompt())
        if prompt.text and prompt.text != self._prefilled:
            self.executor.usage.add(usage_of([dict(self.backend.prefill(prompt))]))
            self._prefilled = prompt.text

    def gather(self, forks: Sequence[Interpreter]) -> None:
        """Queues: each variable that the forks have and this state has not becomes the list of their values."""
        mine = set(self.executor.known_names())
        owners: dict[str, list[Executor]] = {}
        for fork in forks:
            for name in fork.executor.known_names():
                if name not in mine:
                    owners.setdefault(name, []).append(fork.executor)

        def run() -> None:
            for name, executors in owners.items():
                try:
                    self.executor.store(name, [executor.value(name) for executor in executors])
                except Exception as error:
                    self.executor.store(name, Failure(error))

        self.executor.submit(Task(run, "join", tuple(owners)))

    def concatenate(self, forks: Sequence[Interpreter], start: Future[Snapshot]) -> None:
        """Queues: what each fork added is appended, in order."""

        def run() -> None:
            for fork in forks:
                added = fork.executor.read(lambda transcript: transcript.copy(), "the text of a fork")
                self.executor.edit(lambda transcript, added=added: transcript.absorb(added, start.result().transcript))

        self.executor.submit(Task(run, "join"))

    def set_variable(self, name: str, value: Any) -> None:
        self.executor.submit(
            Task(lambda: self.executor.store(name, value), f"setting {name!r}", (name,), is_instant=True)
        )


def _check_finished(completion: Completion) -> None:
    reason = completion.meta_info.get("finish_reason")
    if isinstance(reason, dict) and reason.get("type") == "abort":
        raise RequestAborted(f"the request was aborted: {reason.get('message') or 'no reason was given'}")


def _describe(item: ir.Expr) -> str:
    match item:
        case ir.Gen(name=name):
            return f"gen({name!r})"
        case ir.Select(name=name):
            return f"select({name!r})"
        case ir.RoleBegin(role) | ir.RoleEnd(role):
            return f"a turn of the {role}"
    return type(item).__name__.lower()
