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
from sgjax.grammar.sources import to_source
from sgjax.sampling_params import GrammarSpec

MAX_MASK_THREADS = 8


class GrammarCompiler:
    """Compiles grammars in worker threads, and keeps the last ones by their `GrammarSpec`. Safe to share.

    Args:
      tokenizer_json: Hugging Face's tokenizer.json as text.
      vocab_size: width of the model's logits, V; may exceed the tokenizer's.
      eos_token_ids: every id that ends an output.
      num_workers: grammars compiled at the same time.
      cache_size: compiled grammars kept, the least recently asked for is dropped first.
      timeout_s: a compile that takes longer fails with a `RequestError`. Its thread cannot be stopped: it ends by itself
        at llguidance's limits, and another takes its place meanwhile.

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
        cache_size: int = 256,
        timeout_s: float = 30.0,
    ):
        self._timeout_s = timeout_s
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._cache: OrderedDict[GrammarSpec, Future[Grammar]] = OrderedDict()  # done, and successfully
        self._pending: dict[GrammarSpec, Future[Grammar]] = {}
        self._jobs: queue.SimpleQueue[GrammarSpec | None] = queue.SimpleQueue()
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
                self._cache.move_to_end(spec)
                self.num_cache_hits += 1
                return done
            if (pending := self._pending.get(spec)) is not None:
                return pending
            future = self._pending[spec] = Future()
        self._jobs.put(spec)
        return future

    def close(self) -> None:
        """Ends the workers; what is pending fails."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for spec in pending:
            self._finish(spec, error=RequestError(spec.kind, "the engine is closing"))
        self._jobs.put(None)

    def _start(self, target: Callable[[], None]) -> None:
        # Daemon: a compile that never ends must not keep the process alive.
        threading.Thread(target=target, name="sgjax-grammar", daemon=True).start()

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
        vocabulary = self._vocabulary.result()
        while (spec := self._jobs.get()) is not None:
            if spec not in self._pending:
                continue
            start = time.perf_counter()
            try:
                grammar = _compile(spec, vocabulary)
            except RequestError as error:
                self._finish(spec, error=error)
            except Exception as error:
                self._finish(spec, error=RequestError(spec.kind, str(error)))
            else:
                self._finish(spec, grammar=grammar, seconds=time.perf_counter() - start)
        self._jobs.put(None)  # for the next worker

    def _finish(
        self, spec: GrammarSpec, *, grammar: Grammar | None = None, error: Exception | None = None, seconds: float = 0.0
    ) -> None:
        with self._lock:
            future = self._pending.pop(spec, None)
            if future is None:
                return
            if grammar is not None:
                self.num_compiled += 1
                self.compile_s += seconds
                self._cache[spec] = future
                if len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        if grammar is not None:
            future.set_result(grammar)
        else:
            future.set_exception(error)


def _compile(spec: GrammarSpec, vocabulary: Vocabulary) -> Grammar:
    limits = llguidance.LLParserLimits(verbose_errors=False)
    prototype = llguidance.LLMatcher(vocabulary.tokenizer, to_source(spec), log_level=0, limits=limits)
    if prototype.is_error():
        raise RequestError(spec.kind, prototype.get_error())
    return Grammar(prototype, vocabulary)
