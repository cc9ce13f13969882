"""Compiles grammars in worker threads, once each."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import llguidance
import numpy as np

from sgjax.errors import RequestError
from sgjax.grammar.matcher import Grammar, Vocabulary
from sgjax.grammar.sources import LIMITS, Source
from sgjax.sampling_params import GrammarSpec

MAX_MASK_THREADS = 8
CLOSE_TIMEOUT_S = 5.0
MAX_GIVEN_UP = 8  # workers that took too long and still run, beyond which none is replaced


class GrammarCompiler:
    """Compiles grammars in worker threads, and keeps the last ones by their `GrammarSpec`. Safe to share.

    Args:
      tokenizer_json: Hugging Face's tokenizer.json as text.
      vocab_size: width of the model's logits, V; may exceed the tokenizer's.
      eos_token_ids: every id that ends an output.
      num_workers: grammars compiled at the same time.
      cache_size: compiled grammars kept, the least recently asked for is dropped first.
      timeout_s: a compile that takes longer fails with a `RequestError`. Its thread cannot be stopped: it ends by
        itself at llguidance's limits, and another takes its place meanwhile.
      on_compiled: told the seconds of each successful compile, one at a time.

    Attributes:
      num_compiled, num_cache_hits: since the start. compile_s: seconds spent in successful compiles.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        num_workers: int = 2,
        cache_size: int = 128,
        timeout_s: float = 30.0,
        on_compiled: Callable[[float], None] = lambda seconds: None,
    ):
        self._timeout_s = timeout_s
        self._cache_size = cache_size
        self._on_compiled = on_compiled
        self._lock = threading.Lock()
        self._cache: OrderedDict[GrammarSpec, Future[Grammar]] = OrderedDict()  # done, and successfully
        self._pending: dict[GrammarSpec, Future[Grammar]] = {}
        self._jobs: queue.SimpleQueue[GrammarSpec | None] = queue.SimpleQueue()
        self._given_up: list[GrammarSpec] = []  # what workers without a place are still compiling
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.num_compiled = 0
        self.num_cache_hits = 0
        self.compile_s = 0.0
        self._vocabulary: Future[Vocabulary] = Future()
        eos = sorted(set(eos_token_ids))
        self._start(lambda: self._build_vocabulary(tokenizer_json, vocab_size, eos))
        for _ in range(num_workers):
            self._start(self._work)

    @property
    def num_pending(self) -> int:
        """Grammars asked for and not yet there."""
        return len(self._pending)

    def compile(self, spec: GrammarSpec) -> Future[Grammar]:
        """The compiled grammar, at once where it was compiled before. Equal specs asked together compile once.

        The future raises `RequestError` with `spec.kind` as its field: what is wrong with the grammar, or that it is
        too complex.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the grammar compiler is closed")
            if (done := self._cache.get(spec)) is not None:
                if not (done.done() and done.result().worn_out):
                    self._cache.move_to_end(spec)
                    self.num_cache_hits += 1
                    return done
                del self._cache[spec]
            if (pending := self._pending.get(spec)) is not None:
                return pending
            future = self._pending[spec] = Future()
            future.set_running_or_notify_cancel()  # others may wait for it too: nobody cancels it
        self._jobs.put(spec)
        return future

    def close(self) -> None:
        """Ends the workers; what is pending fails. Waits for what they are doing, but not for long. Twice is fine."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for spec in pending:
            self._finish(spec, RequestError(spec.kind, "the engine is closing"))
        self._jobs.put(None)
        end = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _start(self, target: Callable[[], None]) -> None:
        # Daemon: a compile that takes long must not keep the process alive.
        thread = threading.Thread(target=target, name="sgjax-grammar", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()]
        thread.start()
        self._threads.append(thread)

    def _build_vocabulary(self, tokenizer_json: str, vocab_size: int, eos: list[int]) -> None:
        try:
            tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=eos)
            bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
            bits[eos] = 1
            mask = np.packbits(bits, bitorder="little").view(np.int32)
            executor = llguidance.LLExecutor(min(MAX_MASK_THREADS, os.cpu_count() or 1))
            self._vocabulary.set_result(Vocabulary(tokenizer, frozenset(eos), mask, executor))
        except BaseException as error:  # whoever asks for a grammar is told
            self._vocabulary.set_exception(error)

    def _work(self) -> None:
        """A worker's life: until the compiler is closed, or until it took too long and was replaced."""
        while (spec := self._jobs.get()) is not None:
            try:
                vocabulary = self._vocabulary.result()
            except Exception as error:
                self._finish(spec, RequestError(spec.kind, f"grammars do not work with this tokenizer: {error}"))
                continue
            if not self._compile_in_time(spec, vocabulary):
                return
        self._jobs.put(None)  # for the next worker

    def _compile_in_time(self, spec: GrammarSpec, vocabulary: Vocabulary) -> bool:
        """False when it took too long: this worker has been given up then."""
        timer = threading.Timer(self._timeout_s, self._give_up, [spec])
        timer.daemon = True
        timer.start()
        start = time.perf_counter()
        try:
            result = _compile(spec, vocabulary)
        except RequestError as error:
            result = error
        except Exception as error:  # a mistake of ours or of a library: one request fails, not the engine
            result = RequestError(spec.kind, f"cannot be compiled: {error}")
        timer.cancel()
        with self._lock:
            if spec in self._given_up:
                self._given_up.remove(spec)
                return False
        self._finish(spec, result, time.perf_counter() - start)
        return True

    def _give_up(self, spec: GrammarSpec) -> None:
        """Fails a compile that takes too long; another worker takes the place of its worker."""
        with self._lock:
            if spec not in self._pending or self._closed:
                return
            self._given_up.append(spec)
            replace = len(self._given_up) <= MAX_GIVEN_UP
        self._finish(spec, RequestError(spec.kind, f"too complex: it takes longer than {self._timeout_s:g} s"))
        if replace:
            self._start(self._work)

    def _finish(self, spec: GrammarSpec, result: Grammar | RequestError, seconds: float = 0.0) -> None:
        with self._lock:
            future = self._pending.pop(spec, None)
            if future is None:
                return
            if isinstance(result, Grammar):
                self.num_compiled += 1
                self.compile_s += seconds
                self._on_compiled(seconds)
                self._cache[spec] = future
                if len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        if isinstance(result, Grammar):
            future.set_result(result)
        else:
            future.set_exception(result)


def _compile(spec: GrammarSpec, vocabulary: Vocabulary) -> Grammar:
    source = Source(spec, vocabulary.tokenizer)
    prototype = llguidance.LLMatcher(vocabulary.tokenizer, source.text, log_level=0, limits=LIMITS)
    if prototype.is_error():
        source.fail(prototype.get_error())
    grammar = Grammar(prototype, vocabulary)
    first = grammar.matcher()
    first.fill(np.empty_like(vocabulary.eos_mask))
    if first.error:
        raise RequestError(spec.kind, f"nothing can be generated: {first.error}")
    return grammar
