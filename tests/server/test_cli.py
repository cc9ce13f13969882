"""The command line: flags, offline generation on a fake engine, doctor."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from sgjax_server import cli
from sgjax_server.commands import doctor, generate
from sgjax_server.commands import serve as serve_command
from sgjax_server.config import ServerConfig

from sgjax.config import EngineConfig
from sgjax.types import FinishReason, GrammarSpec, RequestError

from .fakes import FakeEngine


@pytest.fixture
def served(monkeypatch) -> list:
    """What `sgjax serve` would have served: (EngineConfig, ServerConfig)."""
    calls: list = []

    def record(engine_config, server_config, listener):
        listener.close()
        calls.append((engine_config, server_config))
        return 0

    monkeypatch.setattr(serve_command, "serve", record)
    return calls


def test_defaults_are_the_dataclasses(served):
    assert cli.main(["serve", "--port", "0"]) == 0
    assert served == [(EngineConfig(), ServerConfig(port=0))]


def test_every_setting_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    for config in (EngineConfig, ServerConfig):
        for field in dataclasses.fields(config):
            assert "--" + field.name.replace("_", "-") in text


def test_flags_of_sglang_work(served):
    line = "--model m --tp-size 1 --host 127.0.0.1 --port=0 --mem-fraction-static 0.5 --disable-radix-cache"
    line += " --schedule-policy fcfs --chunked-prefill-size 64 --dtype float32 --disable-cuda-graph --stream-interval 3"
    line += " --tool-call-parser qwen25 --reasoning-parser deepseek-r1"
    assert cli.main(["serve", *line.split()]) == 0
    ((engine, server),) = served
    assert engine == EngineConfig(
        model_path="m",
        mem_fraction_static=0.5,
        disable_radix_cache=True,
        schedule_policy="fcfs",
        chunked_prefill_size=64,
        dtype="float32",
    )
    assert server.stream_interval == 3
    assert (server.tool_call_parser, server.reasoning_parser) == ("qwen25", "deepseek-r1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--page-size 17", ("--page-size", "17")),
        ("--page-size x", ("--page-size", "x")),
        ("--schedule-policy dfs-weight", ("--schedule-policy", "dfs-weight", "lpm")),
        ("--tp-size 2", ("--tp-size", "only 1")),
        ("--api-key=", ("--api-key",)),
        ("--ssl-keyfile key.pem", ("--ssl-keyfile", "--ssl-certfile")),
        ("--ssl-certfile no-such.pem", ("--ssl-certfile", "No such file")),
        ("--quantization fp8", ("--quantization",)),
        ("--tool-call-parser kimi_k2", ("--tool-call-parser", "kimi_k2", "mistral")),
        ("--reasoning-parser kimi", ("--reasoning-parser", "kimi", "qwen3")),
        ("--trust-remote-code", ("--trust-remote-code",)),
        ("--attention-backend fa3", ("--attention-backend", "--kernels")),
        ("--port 70000", ("--port", "70000")),
        ("--no-such-flag", ("--no-such-flag",)),
        ("--page 16", ("--page",)),
        ("--host 192.0.2.1", ("192.0.2.1",)),
    ],
)
def test_bad_flags_are_refused_by_name(served, capsys, line: str, words: tuple[str, ...]):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *line.split()])
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words)
    assert served == []


class FakeOfflineEngine(FakeEngine):
    """For plain threads: handles are iterated with `for`."""

    def submit(self, request, *, bounded=True):
        super().submit(request)
        return self._iterated(request)

    def _iterated(self, request):
        if (grammar := request.sampling.grammar) is not None and grammar.text == self.bad_grammar:
            raise RequestError(grammar.kind, "no such type")
        reply = [*self._reply(request).encode(), 0][: request.sampling.max_new_tokens]
        for position in range(max(1, len(reply))):
            for index in range(request.sampling.n):
                yield self._delta(request, index, reply, position)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


@pytest.fixture
def offline_engine() -> FakeOfflineEngine:
    engine = FakeOfflineEngine(lambda request: bytes(request.input_ids).decode().upper())
    engine.tokenizer.chat_template = "{{ messages }}"  # type: ignore[attr-defined]
    return engine


def _lines(engine, *lines: object, **defaults) -> tuple[int, list[dict]]:
    sink = io.StringIO()
    source = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    status = generate.generate_lines(engine, source, sink, defaults)
    return status, [json.loads(line) for line in sink.getvalue().splitlines()]


def test_json_lines_in_every_form(offline_engine):
    status, records = _lines(
        offline_engine,
        {"prompt": "ab", "max_new_tokens": 1},
        "",
        {"id": "x", "text": "cd", "sampling_params": {"max_new_tokens": 5}},
        {"input_ids": [101], "temperature": 0},
        {"messages": [{"role": "user", "content": "f"}]},
        top_p=0.5,
    )
    assert status == 0
    assert [record["id"] for record in records] == [0, "x", 3, 4]
    assert [record["text"] for record in records[:3]] == ["A", "CD", "E"]
    assert records[0] == {
        "id": 0,
        "text": "A",
        "finish_reason": {"kind": "length"},
        "prompt_tokens": 2,
        "completion_tokens": 1,
        "cached_tokens": 2,
    }
    assert {request.sampling.top_p for request in offline_engine.submitted} == {0.5}


def test_a_bad_line_stops_no_other(offline_engine):
    status, records = _lines(
        offline_engine,
        {"prompt": "a"},
        "{",
        "[]",
        {"id": 7},
        {"prompt": "a", "text": "b"},
        {"id": 8, "prompt": "a", "top_p": 0},
        {"prompt": "a", "beams": 3},
        {"prompt": 5},
        {"input_ids": [1, "x"]},
        {"input_ids": [999]},
        {"prompt": "z", "n": 2},
    )
    assert status == 1
    assert [record["text"] for record in records if "text" in record] == ["A", "Z", "Z"]
    errors = [(record["id"], record["error"]["field"]) for record in records if "error" in record]
    assert errors == [
        (1, "line"),
        (2, "line"),
        (7, "prompt"),
        (4, "prompt"),
        (8, "top_p"),
        (6, "beams"),
        (7, "prompt"),
        (8, "input_ids"),
        (9, "input_ids"),
    ]
    assert [record.get("index") for record in records[-2:]] == [0, 1]


def test_many_lines_keep_their_order(offline_engine, monkeypatch):
    monkeypatch.setattr(generate, "_LINES_AHEAD", 7)
    _, records = _lines(offline_engine, *({"id": i, "prompt": str(i)} for i in range(50)))
    assert [(record["id"], record["text"]) for record in records] == [(i, str(i)) for i in range(50)]


def test_one_prompt(offline_engine):
    sink = io.StringIO()
    assert generate.generate_one(offline_engine, "hi", sink, {"max_new_tokens": 30}, raw=True) == 0
    assert sink.getvalue() == "HI\n"
    generate.generate_one(offline_engine, "hi", io.StringIO(), {}, raw=False)
    assert bytes(offline_engine.submitted[-1].input_ids) == b"user:hi|assistant:"


def test_grammar_flags(offline_engine, monkeypatch, tmp_path, capsys):
    """A schema comes as text or from a file."""
    monkeypatch.setattr(generate, "load_engine", lambda config, progress: offline_engine)
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}')
    for flags in (
        ["--json-schema", "true"],
        ["--json-schema", f"@{path}"],
        ["--regex", "@+"],
        ["--ebnf", "root ::= 'a'"],
        ["--choices", "a", "--choices", "b"],
    ):
        assert cli.main(["generate", "hi", *flags]) == 0
    assert [request.sampling.grammar for request in offline_engine.submitted] == [
        GrammarSpec("json_schema", "true"),
        GrammarSpec("json_schema", '{"type": "object"}'),
        GrammarSpec("regex", "@+"),
        GrammarSpec("ebnf", "root ::= 'a'"),
        GrammarSpec("choices", '["a", "b"]'),
    ]
    offline_engine.bad_grammar = "("
    assert cli.main(["generate", "hi", "--regex", "("]) == 1
    assert capsys.readouterr().err.endswith("sgjax: regex: no such type\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--regex", "a", "--ebnf", "b"], "argument --ebnf: cannot be combined with regex"),
        (["--json-schema", "@/no/such/file"], "/no/such/file: No such file"),
    ],
)
def test_bad_grammar_flags(capsys, flags: list[str], words: str):
    with pytest.raises(SystemExit):
        cli.main(["generate", "hi", *flags])
    assert words in capsys.readouterr().err


def test_an_answer_that_is_ended_says_why(offline_engine, capsys):
    offline_engine.end = FinishReason("abort", message="nothing may follow")
    sink = io.StringIO()
    assert generate.generate_one(offline_engine, "hi", sink, {}, raw=True) == 0
    assert sink.getvalue() == "HI\n"
    assert "nothing may follow" in capsys.readouterr().err


def test_grammars_of_lines(offline_engine):
    """A line's own grammar replaces the flag's, of whichever kind; one that is refused stops no other line."""
    offline_engine.bad_grammar = "("
    lines = [{"prompt": "a"}, {"prompt": "b", "json_schema": {}}, {"prompt": "c", "regex": "("}, {"prompt": "d"}]
    status, records = _lines(offline_engine, *lines, choices=["x"])
    assert status == 1
    kinds = [request.sampling.grammar.kind for request in offline_engine.submitted]
    assert kinds == ["choices", "json_schema", "regex", "choices"]
    assert [record.get("text") for record in records] == ["A", "B", None, "D"]
    assert records[2] == {"id": 2, "error": {"field": "regex", "message": "no such type"}}


def test_version_imports_neither_jax_nor_http():
    code = "import sys; from sgjax_server import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('jax', 'fastapi', 'pydantic', 'tokenizers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, modules = done.stdout.splitlines()
    assert version.startswith("sgjax ")
    assert modules == "[]"


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "device 0" in text
    assert "All well." in text


def test_doctor_when_jax_is_broken(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "raise ImportError('libfoo.so: cannot open')")
    assert cli.main(["doctor"]) == 1
    assert "libfoo.so" in capsys.readouterr().out


def test_doctor_names_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "probe_devices", lambda: ({"devices": [], "platforms": None}, None))
    assert cli.main(["doctor"]) == 1
    assert "pip install no-such-package" in capsys.readouterr().out


def test_doctor_when_the_gpu_is_not_used(capsys, monkeypatch):
    device = {"platform": "cpu", "kind": "cpu", "memory": None}
    monkeypatch.setattr(doctor, "probe_devices", lambda: ({"devices": [device], "platforms": None}, None))
    monkeypatch.setattr(doctor, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(doctor, "_PLUGINS", ())
    assert cli.main(["doctor"]) == 0
    assert "sgjax[cuda13]" in capsys.readouterr().out
