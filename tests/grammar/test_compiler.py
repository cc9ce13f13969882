"""Compiling in workers: caching, equal specs, what takes too long, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import sgjax.grammar.compiler as compiler_module
from sgjax.grammar import GrammarCompiler
from sgjax.sampling_params import GrammarSpec
from sgjax.text import Tokenizer
from sgjax.types import RequestError

Make = Callable[..., GrammarCompiler]


def regex(text: str) -> GrammarSpec:
    return GrammarSpec("regex", text)


@pytest.fixture(scope="module")
def tokenizer_json(tokenizer: Tokenizer) -> str:
    return tokenizer.to_json()


@pytest.fixture
def make(tokenizer_json: str) -> Iterator[Make]:
    made: list[GrammarCompiler] = []

    def make(**options: Any) -> GrammarCompiler:
        made.append(GrammarCompiler(tokenizer_json, vocab_size=49_152, eos_token_ids=[2], **options))
        return made[-1]

    yield make
    for compiler in made:
        compiler.close()


def test_compiled_grammar_is_at_hand(make: Make) -> None:
    compiler = make()
    grammar = compiler.compile(regex("a+")).result(30)
    again = compiler.compile(regex("a+"))
    assert again.done()
    assert again.result() is grammar
    assert compiler.compile(regex("b+")).result(30) is not grammar
    assert (compiler.num_compiled, compiler.num_cache_hits, compiler.num_pending) == (2, 1, 0)
    assert compiler.compile_s > 0


def test_least_recently_asked_for_is_dropped(make: Make) -> None:
    compiler = make(cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        compiler.compile(regex(text)).result(30)
    assert compiler.num_compiled == 4  # b again
    assert compiler.num_cache_hits == 2  # a twice


def test_equal_specs_asked_together_compile_once(make: Make) -> None:
    compiler = make()
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(compiler.compile, [regex("x|y")] * 50))
    assert len({id(future.result(30)) for future in futures}) == 1
    assert compiler.num_compiled == 1


def test_refusals_are_not_kept_and_hurt_nobody(make: Make) -> None:
    compiler = make(num_workers=1)
    bad = [compiler.compile(regex("(" * n)) for n in range(1, 6)]
    good = compiler.compile(regex("ok"))
    for future in bad:
        with pytest.raises(RequestError, match="regex: "):
            future.result(30)
    good.result(30)
    assert (compiler.num_compiled, compiler.num_pending) == (1, 0)


def test_what_takes_too_long_fails_and_its_worker_is_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    compile_quickly = compiler_module._compile

    def compile_slowly(spec: GrammarSpec, vocabulary: Any) -> Any:
        if spec.text.startswith("slow"):
            release.wait(30)
        return compile_quickly(spec, vocabulary)

    monkeypatch.setattr(compiler_module, "_compile", compile_slowly)
    compiler = make(num_workers=1, timeout_s=0.2)
    compiler.compile(regex("a")).result(30)
    slow = [compiler.compile(regex(f"slow{i}")) for i in range(3)]
    quick = compiler.compile(regex("quick"))
    for future in slow:
        with pytest.raises(RequestError, match=r"too complex: it takes longer than 0\.2 s"):
            future.result(10)
    quick.result(10)
    num_threads = threading.active_count()
    release.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > num_threads - 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= num_threads - 3  # those given up have ended
    compiler.compile(regex("slow0")).result(10)  # and may be asked for again


def test_closing_fails_what_is_pending(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(compiler_module, "_compile", lambda spec, vocabulary: release.wait(30))
    compiler = make(num_workers=1)
    futures = [compiler.compile(regex(text)) for text in "abc"]
    compiler.close()
    for future in futures:
        with pytest.raises(RequestError, match="closing"):
            future.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        compiler.compile(regex("d"))
    release.set()


def test_a_mistake_of_ours_fails_one_request(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = make(num_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(compiler_module, "Source", None)
        with pytest.raises(RequestError, match="cannot be compiled"):
            compiler.compile(regex("a")).result(30)
    compiler.compile(regex("a")).result(30)


def test_a_tokenizer_that_cannot_be_used_is_told_to_who_asks() -> None:
    compiler = GrammarCompiler("{}", vocab_size=10, eos_token_ids=[2], num_workers=1)
    with pytest.raises(RequestError, match="do not work with this tokenizer"):
        compiler.compile(regex("a")).result(30)
    compiler.close()


def test_worn_out_grammar_is_compiled_anew(make: Make, tokenizer: Tokenizer) -> None:
    """The lexer's states are shared by all sequences of a grammar; one that uses them up must not spoil the cache."""
    compiler = make()
    spec = regex("(a|b)*a(a|b){18}c")
    matcher = compiler.compile(spec).result(30).matcher()
    letters = [tokenizer.encode(letter, False)[0] for letter in "ab"]
    rng = np.random.default_rng(0)
    for token_id in rng.choice(letters, 100_000).tolist():
        if not matcher.accept(token_id):
            break
    assert matcher.error is not None
    assert matcher.error.startswith("too complex")
    fresh = compiler.compile(spec).result(30).matcher()
    mask = np.zeros(49_152 // 32, np.int32)
    fresh.fill(mask)
    assert fresh.error is None
    assert compiler.num_compiled == 2
