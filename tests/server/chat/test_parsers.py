"""Tool-call and reasoning parsers: what each reads, and that no way to cut a stream changes it."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgjax_server.chat.parsers.deepseek import deepseek
from sgjax_server.chat.parsers.hermes import hermes
from sgjax_server.chat.parsers.llama3 import llama3
from sgjax_server.chat.parsers.mistral import mistral
from sgjax_server.chat.parsers.parser import AnswerParser, Format
from sgjax_server.chat.parsers.pieces import Arguments, CallStarted, Piece, Reasoning, Text
from sgjax_server.chat.parsers.pythonic import pythonic
from sgjax_server.chat.parsers.reasoning import reasoning

TOOLS = frozenset({"f", "get_weather", "a.b"})
FORMATS = {
    parser.__name__: [functools.partial(parser, tools=TOOLS)]
    for parser in (hermes, llama3, mistral, deepseek, pythonic)
}
FORMATS["think"] = [functools.partial(reasoning, is_open=False)]
FORMATS["open think"] = [functools.partial(reasoning, is_open=True)]
FORMATS["think and hermes"] = FORMATS["think"] + FORMATS["hermes"]

CALL = '{"name": "f", "arguments": {"a": [1, "}\\"]"], "b": {}}}'
ARGS = '{"a": [1, "}\\"]"], "b": {}}'
DS = dict(
    B="<｜tool▁calls▁begin｜>",
    b="<｜tool▁call▁begin｜>",
    s="<｜tool▁sep｜>",
    e="<｜tool▁call▁end｜>",
    E="<｜tool▁calls▁end｜>",
)

# (format, stream, what it holds: text, reasoning as ("think", ...), calls as (name, arguments))
STREAMS = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", [("f", ARGS)]),
    (
        "hermes",
        f"Sure. \n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n",
        ["Sure.", ("f", ARGS), ("f", ARGS)],
    ),
    ("hermes", f"<tool_call>{CALL}</tool_call> Done.\n", [("f", ARGS), "Done.\n"]),
    ("hermes", f"<tool_call>{CALL}", [("f", ARGS)]),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    ("hermes", '<tool_call>{"id": 7, "name": "f", "parameters": {}, "more": [1]}</tool_call>', [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1]} z', [("f", '{"x": 1'), "]} z"]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "cut', [("f", '{"x": "cut')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, oh', [("f", "{}"), ", oh"]),
    (
        "hermes",
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "g", "arguments": {}}</tool_call>'],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": 5}', ['<tool_call>{"name": "f", "arguments": 5}']),
    ("hermes", '<tool_call>{"city": 1}', ['<tool_call>{"city": 1}']),
    ("hermes", "a <tool_ca", ["a <tool_ca"]),
    ("hermes", "a < b <tool_call> \n", ["a < b <tool_call> \n"]),
    ("hermes", f"<tool_call> <tool_call>{CALL}", ["<tool_call>", ("f", ARGS)]),
    ("hermes", "", []),
    ("llama3", '{"name": "f", "parameters": {"x": "é"}}', [("f", '{"x": "é"}')]),
    (
        "llama3",
        '{"type": "function", "name": "f", "parameters": {}}; {"name": "a.b", "parameters": {"y": 2}}',
        [("f", "{}"), ("a.b", '{"y": 2}')],
    ),
    ("llama3", 'Let me see.<|python_tag|>{"name": "f", "parameters": {}}', ["Let me see.", ("f", "{}")]),
    ("llama3", '{"name": "f", "parameters": {}}; and more', [("f", "{}"), "; and more"]),
    ("llama3", '{"city": "Paris", "name": "f"}', ['{"city": "Paris", "name": "f"}']),
    ("llama3", 'It is {"name": "f", "parameters": {}}', ['It is {"name": "f", "parameters": {}}']),
    ("llama3", "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", [("f", ARGS), ("f", ARGS)]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "123456789"}]', [("f", "{}")]),
    (
        "mistral",
        'Yes.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{}',
        ["Yes.", ("f", '{"x": 1}'), ("get_weather", "{}")],
    ),
    ("mistral", '[TOOL_CALLS]f{"x": 1}', [("f", '{"x": 1}')]),
    ("mistral", "[TOOL_CALLS]g[ARGS]{}", ["[TOOL_CALLS]g[ARGS]{}"]),
    ("mistral", "[TOOL_CALLS] [1, 2]", ["[TOOL_CALLS] [1, 2]"]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, 7]", [("f", ARGS), ", 7]"]),
    (
        "deepseek",
        '{B}{b}function{s}f\n```json\n{{"x": 1}}\n```{e}\n{b}function{s}a.b\n```json\n{{}}\n```{e}{E}'.format(**DS),
        [("f", '{"x": 1}'), ("a.b", "{}")],
    ),
    (
        "deepseek",
        'I look.\n\n{B}{b}f{s}{{"x": 1}}{e}{b}a.b{s}{{}}{e}{E}'.format(**DS),
        ["I look.", ("f", '{"x": 1}'), ("a.b", "{}")],
    ),
    ("deepseek", "{b}f{s}{{}}{e}".format(**DS), [("f", "{}")]),
    ("deepseek", "{B} no".format(**DS), ["{B} no".format(**DS)]),
    ("deepseek", "{B}{b}g{s}{{}}{e}{E}".format(**DS), ["{B}{b}g{s}{{}}{e}{E}".format(**DS)]),
    (
        "pythonic",
        "[f(a=1, b=\"x)]\"), get_weather(city=['Paris', None], on=True)]",
        [("f", '{"a": 1, "b": "x)]"}'), ("get_weather", '{"city": ["Paris", null], "on": true}')],
    ),
    ("pythonic", "Sure: [f()]", ["Sure:", ("f", "{}")]),
    ("pythonic", "<|python_start|>[f(a=-1.5)]<|python_end|>", [("f", '{"a": -1.5}')]),
    ("pythonic", "[f(1)]", ["[f(1)]"]),
    ("pythonic", "[f(a=open('x'))]", ["[f(a=open('x'))]"]),
    ("pythonic", "[f(**{'a': 1})]", ["[f(**{'a': 1})]"]),
    ("pythonic", "[f(a=1), 2]", [("f", '{"a": 1}'), ", 2]"]),
    (
        "pythonic",
        "[f(a=b'x')] [f(a={1})] [f(a=1e999)] [f(a='\\ud800')]",
        ["[f(a=b'x')] [f(a={1})] [f(a=1e999)] [f(a='\\ud800')]"],
    ),
    ("pythonic", "[g(a=1)] and x[f] [1, 2]", ["[g(a=1)] and x[f] [1, 2]"]),
    ("think", "<think>\nI see.\n</think>\n\nYes. \n", [("think", "I see."), "Yes. \n"]),
    ("think", "Yes <think>no</think>", ["Yes <think>no</think>"]),
    ("think", "  Yes", ["  Yes"]),
    ("think", "<think></think>\n\nYes", ["Yes"]),
    ("think", "<think>cut </thin", [("think", "cut </thin")]),
    ("open think", "I see.</think>Yes", [("think", "I see."), "Yes"]),
    ("open think", "<think>I see.</think>Yes", [("think", "I see."), "Yes"]),
    (
        "think and hermes",
        f"<think>Hm.\n</think>\n\nOk\n<tool_call>{CALL}</tool_call>",
        [("think", "Hm."), "Ok", ("f", ARGS)],
    ),
    (
        "think and hermes",
        f"<think>Hm <tool_call>{CALL}</think><tool_call>{CALL}</tool_call>",
        [("think", f"Hm <tool_call>{CALL}"), ("f", ARGS)],
    ),
]


def parse(formats: Sequence[Format], chunks: Sequence[str]) -> list[Piece]:
    parser = AnswerParser(formats)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    return [*pieces, *parser.finish()]


def joined(pieces: Sequence[Piece]) -> list:
    """Text as it is, reasoning as ("think", text), calls as (name, arguments)."""
    found: list = []
    for piece in pieces:
        match piece:
            case CallStarted(name):
                found.append((name, ""))
            case Arguments(text):
                name, so_far = found.pop()
                found.append((name, so_far + text))
            case Reasoning(text):
                so_far = found.pop()[1] if found and found[-1][0] == "think" else ""
                found.append(("think", so_far + text))
            case Text(text):
                so_far = found.pop() if found and isinstance(found[-1], str) else ""
                found.append(so_far + text)
    return found


@pytest.mark.parametrize(("format", "stream", "expected"), STREAMS)
def test_every_split(format: str, stream: str, expected: list):
    """Whole, by character, and cut once or twice at every place."""
    formats = FORMATS[format]
    pieces = parse(formats, [stream])
    assert joined(pieces) == expected
    assert all(piece.text for piece in pieces if not isinstance(piece, CallStarted))
    assert joined(parse(formats, list(stream))) == expected
    for i, j in itertools.combinations_with_replacement(range(len(stream) + 1), 2):
        assert joined(parse(formats, [stream[:i], stream[i:j], stream[j:]])) == expected


MARKS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"),
    *DS.values(),
    *(
        "```json",
        "```",
        "function",
        "[",
        "]",
        "[f(a=1)]",
        "f(",
        "f",
        "g",
        ")",
        "a=",
        "<|python_start|>",
        "<|python_end|>",
    ),
    *(
        '{"name": "f", "arguments": {',
        '{"name": "',
        "{",
        "}",
        '"',
        "\\",
        ",",
        ":",
        ";",
        " ",
        "\n",
        "1",
        "é",
        "\ud800",
        "'",
    ),
    *(CALL, ARGS, '{"name": "g"}', '"arguments": ', "text"),
]


@st.composite
def streams(draw: st.DrawFn, format: str) -> str:
    """Whole streams of the format, pieces of them, marks and any text, one after the other."""
    whole = st.sampled_from([stream for name, stream, _ in STREAMS if name == format])
    places = st.tuples(whole, st.integers(0, 40), st.integers(0, 40))
    piece = places.map(lambda found: found[0][found[1] : found[1] + found[2]])
    parts = draw(st.lists(st.one_of(whole, piece, st.sampled_from(MARKS), st.text(max_size=3)), max_size=8))
    return "".join(parts)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_text_at_any_splits(format: str, data: st.DataObject):
    """Nothing raises, and cuts change nothing; what holds neither calls nor reasoning comes out as it went in."""
    formats = FORMATS[format]
    stream = data.draw(streams(format))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[i:j] for i, j in itertools.pairwise([0, *cuts, len(stream)])]
    whole = joined(parse(formats, [stream]))
    assert joined(parse(formats, chunks)) == whole
    assert joined(parse(formats, list(stream))) == whole
    if all(isinstance(item, str) for item in whole) and "think" not in format:
        assert "".join(whole) == stream


@given(arguments=st.dictionaries(st.text(), st.recursive(st.text() | st.integers() | st.none(), st.lists), max_size=3))
def test_arguments_come_through_unchanged(arguments: dict):
    text = json.dumps(arguments, ensure_ascii=False)
    stream = f'<tool_call>{{"name": "f", "arguments": {text}}}</tool_call>'
    assert joined(parse(FORMATS["hermes"], list(stream))) == [("f", text)]
    called = f"[f({', '.join(f'a{i}={value!r}' for i, value in enumerate(arguments.values()))})]"
    expected = {f"a{i}": value for i, value in enumerate(arguments.values())}
    if not re.search(r"\\u[dD]|\\x", called):
        ((name, found),) = joined(parse(FORMATS["pythonic"], [called]))
        assert (name, json.loads(found)) == ("f", expected)


def test_arguments_are_streamed():
    parser = AnswerParser(FORMATS["hermes"])
    parser.feed('<tool_call>{"name": "f", "arguments": {"text": "once ')
    assert parser.feed("upon a time") == [Arguments("upon a time")]


NEVER_ENDING = ["[f(", '[f("', '<tool_call>{"arguments": [', "[TOOL_CALLS] [{", '{"id": ', "<think>", "<tool_call> "]


@pytest.mark.parametrize("part", NEVER_ENDING)
@pytest.mark.parametrize("format", FORMATS)
def test_work_is_linear(format: str, part: str):
    """Were each of these read to the end again and again, this would take minutes."""
    stream = part * 3_000
    whole = joined(parse(FORMATS[format], [stream]))
    if "think" not in format:
        assert whole == [stream] or whole == [stream.rstrip()]


def test_text_is_streamed():
    for name, formats in FORMATS.items():
        if name != "open think":
            parser = AnswerParser(formats)
            assert joined(parser.feed("Once") + parser.feed(" upon")) == ["Once upon"], name
