"""The grammars of turns, compiled with the embedded model's tokenizer: what each format's calls may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sgjax_server.chat.constraint import constrain
from sgjax_server.chat.thinking import Thinking
from sgjax_server.chat.tool_formats import FORMATS, ToolFormat, adapted
from sgjax_server.chat.tools import Tool, ToolChoice

from benchmarks.grammar_suite import Feeder
from sgjax.grammar import GrammarCompiler
from sgjax.text import load_tokenizer
from sgjax.types import SamplingParams

WRITTEN = {name: adapted(FORMATS[name], "") for name in FORMATS if FORMATS[name].begin is not None}
WRITTEN["mistral named"] = adapted(FORMATS["mistral"], "[ARGS]")
INTEGER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
STRICT = Tool(name="f", parameters=INTEGER, strict=True)
LOOSE = Tool(name="g", parameters=INTEGER)
GOOD, BAD = '{"x":1}', '{"x":"1"}'

Takes = Callable[..., bool]


@pytest.fixture(scope="module")
def takes(embedded_model_path: Path) -> Iterator[Takes]:
    """Whether a turn with these wishes may give a text."""
    tokenizer = load_tokenizer(embedded_model_path)
    compiler = GrammarCompiler(
        tokenizer.to_json(), vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.eos_token_ids, cache_size=100
    )
    feeder = Feeder(tokenizer, tokenizer.vocab_size)

    def takes_text(
        text: str,
        written: ToolFormat,
        *tools: Tool,
        choice: ToolChoice = ToolChoice(),  # noqa: B008
        thinking: Thinking = "none",
        parallel: bool = True,
        **sampling,
    ) -> bool:
        constraint = constrain(SamplingParams(**sampling), thinking, tools, choice, written, parallel=parallel)
        assert constraint.sampling.grammar is not None
        return feeder.takes(compiler.compile(constraint.sampling.grammar).result(60), text)

    yield takes_text
    compiler.close()


@pytest.mark.parametrize("name", WRITTEN)
def test_required(name: str, takes: Takes):
    written = WRITTEN[name]
    required = {"choice": ToolChoice("required")}
    call, wrong = written.call("f", GOOD), written.call("f", BAD)
    middle = written.separator.join([written.begin_of("f") + GOOD + written.end] * 2)
    several = written.opening + middle + written.closing
    assert takes(call, written, STRICT, **required)
    assert takes(several, written, STRICT, **required)
    assert not takes(several, written, STRICT, parallel=False, **required)
    for text in ("", "Text", wrong, call[:-1], f"{call} more", written.call("h", GOOD)):
        assert not takes(text, written, STRICT, **required), text


def test_named(takes: Takes):
    named = {"choice": ToolChoice("named", "f")}
    written = WRITTEN["hermes"]
    assert takes(written.call("f", GOOD), written, STRICT, LOOSE, **named)
    assert not takes(written.call("g", GOOD), written, STRICT, LOOSE, **named)


@pytest.mark.parametrize("name", WRITTEN)
def test_strict(name: str, takes: Takes):
    """Text is free; a strict tool's calls are not, and another's need only be an object."""
    written = WRITTEN[name]
    for text in ("", "Just text.", written.call("f", GOOD), "Hm. " + written.call("g", BAD)):
        assert takes(text, written, STRICT, LOOSE), text
    for text in (written.call("f", BAD), "Hm. " + written.call("f", BAD)):
        assert not takes(text, written, STRICT, LOOSE), text


@pytest.mark.parametrize("name", WRITTEN)
def test_one_call_at_most(name: str, takes: Takes):
    written = WRITTEN[name]
    call = written.call("g", GOOD)
    for text in ("", "Just text.", call, "Hm. " + call):
        assert takes(text, written, LOOSE, parallel=False), text
    assert not takes(call + call, written, LOOSE, parallel=False)


def test_calls_or_the_response_format(takes: Takes):
    written = WRITTEN["hermes"]
    for text in (written.call("g", GOOD), '{"x":7}'):
        assert takes(text, written, LOOSE, json_schema=INTEGER), text
    for text in ("Text", written.call("g", BAD), '{"x":7}' + written.call("g", GOOD)):
        assert not takes(text, written, LOOSE, json_schema=INTEGER), text


def test_reasoning_comes_first(takes: Takes):
    written = WRITTEN["hermes"]
    required = {"choice": ToolChoice("required")}
    call = written.call("f", GOOD)
    assert takes(f"I see <tool_call> </think>\n\n{call}", written, STRICT, thinking="open", **required)
    assert not takes(call, written, STRICT, thinking="open", **required)
    assert takes(f"<think>I see</think>\n\n{call}", written, STRICT, thinking="optional", **required)
    assert takes(call, written, STRICT, thinking="optional", **required)
    assert not takes(f"I see</think>\n\n{call}", written, STRICT, thinking="optional", **required)
