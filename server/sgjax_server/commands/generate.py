"""`sgjax generate`: one prompt to the terminal, or a file of requests to a file of answers."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from tqdm import tqdm

import sgjax
from sgjax.config import EngineConfig
from sgjax.sampling_params import GRAMMAR_KINDS
from sgjax.types import GenerateOutput, Request, RequestError, SamplingParams
from sgjax_server.commands.loading import add_engine_flags, explain, load_engine
from sgjax_server.flags import add_flags, from_flags
from sgjax_server.progress import ProgressLine
from sgjax_server.sampling_defaults import sampling_defaults

if TYPE_CHECKING:
    from sgjax.engine import Engine, RequestHandle

_SAMPLING_HELP = {
    "max_new_tokens": "Tokens to generate at most",
    "temperature": "0 takes the likeliest token; default: the model's, else 1",
    "top_p": "Smallest set of tokens with this probability; default: the model's, else 1",
    "top_k": "Likeliest tokens to draw from; default: the model's, else all",
    "min_p": "Least probability, as a share of the likeliest token's",
    "repetition_penalty": "Above 1 makes tokens that have occurred less likely",
    "seed": "Makes draws repeatable; default: random",
    "stop": "End before this text; may be given several times",
    "ignore_eos": "Go on after the end-of-sequence token",
    "n": "Samples per prompt",
    "json_schema": "JSON schema that the output follows, or @FILE",
    "regex": "Regular expression that the output matches",
    "ebnf": "Grammar in EBNF that the output follows, or @FILE",
    "choices": "One of the texts that the output may be; give it for each",
}
_FROM_FILE = ("json_schema", "ebnf")
# Lines submitted before the first of them is finished: enough for any batch, and a bound on memory.
_LINES_AHEAD = 1024
_PROMPT_FIELDS = ("prompt", "text", "messages", "input_ids")

_EPILOG = """\
With --jsonl (implied by a file that ends in .jsonl) every input line is a JSON object with one of prompt, text,
input_ids or messages, an optional id, and sampling parameters, which go before the flags. The output has a JSON line
per sample, in the order of the input: id, text, finish_reason, prompt_tokens, completion_tokens, cached_tokens. A bad
line gives {"id": ..., "error": {"field": ..., "message": ...}}; the others are not affected, the exit status is 1."""


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate text without a server",
        epilog=_EPILOG,
        allow_abbrev=False,
        usage="sgjax generate [PROMPT] [FLAGS]",
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; default: --file, else standard input")
    parser.add_argument("--file", metavar="PATH", help="read the prompt, or JSON lines, from a file")
    parser.add_argument("--jsonl", action="store_true", help="the input is JSON lines, one request each")
    parser.add_argument("--output", metavar="PATH", help="write there; default: standard output")
    parser.add_argument("--raw", action="store_true", help="continue a single prompt as it is, without chat template")
    add_flags(parser, SamplingParams, "sampling", _SAMPLING_HELP)
    add_engine_flags(parser)
    parser.set_defaults(run=functools.partial(_run, parser))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.prompt is not None and (args.file or args.jsonl):
        parser.error("give a prompt or --file/--jsonl, not both")
    given = {name: getattr(args, name) for name in _SAMPLING_HELP if hasattr(args, name)}
    for name in _FROM_FILE:
        if given.get(name, "").startswith("@"):
            given[name] = _read(parser, given[name][1:])
    from_flags(parser, SamplingParams, argparse.Namespace(**given))  # refuses bad flags before a model is loaded
    config = from_flags(parser, EngineConfig, args)
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(open(args.file, encoding="utf-8")) if args.file else sys.stdin
            sink = stack.enter_context(open(args.output, "w", encoding="utf-8")) if args.output else sys.stdout
        except OSError as error:
            parser.error(f"{error.filename}: {error.strerror}")
        has_lines = args.jsonl or (args.file or "").endswith(".jsonl")
        # One prompt needs a few buckets only: they are compiled as it comes to them.
        engine = _load(config if has_lines else config.replace(skip_warmup=True))
        if engine is None:
            return 1
        stack.enter_context(engine)
        defaults = {**sampling_defaults(engine.info.generation_defaults), **given}
        try:
            if has_lines:
                return generate_lines(engine, source, sink, defaults)
            prompt = args.prompt if args.prompt is not None else source.read()
            return generate_one(engine, prompt, sink, defaults, raw=args.raw)
        except sgjax.EngineError as error:
            print(f"sgjax: {error}", file=sys.stderr)
            return 1


def _read(parser: argparse.ArgumentParser, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{path}: {error.strerror if isinstance(error, OSError) else error}")


def _load(config: EngineConfig) -> Engine | None:
    with contextlib.closing(ProgressLine()) as progress:
        try:
            return load_engine(config, progress)
        except Exception as error:
            progress.close()
            explain(error)
            return None


def generate_one(engine: Engine, prompt: str, sink: TextIO, defaults: Mapping[str, Any], *, raw: bool) -> int:
    """Streams the answer to one prompt; several samples follow each other."""
    chat = not raw and engine.tokenizer.chat_template is not None
    fields = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    try:
        request = _request(engine, fields, defaults)
        _write_one(request, engine.submit(request, bounded=False), sink)
    except RequestError as error:
        print(f"sgjax: {error}", file=sys.stderr)
        return 1
    return 0


def _write_one(request: Request, handle: RequestHandle, sink: TextIO) -> None:
    if request.sampling.n > 1:
        for sample in _samples(request, handle):
            sink.write(f"--- sample {sample.index}\n{sample.text}\n")
        return
    for delta in handle:
        sink.write(delta.text)
        sink.flush()
        if delta.finish is not None and delta.finish.kind == "abort":
            print(f"sgjax: ended on the way: {delta.finish.message}", file=sys.stderr)
    sink.write("\n")


class _Line(NamedTuple):
    """One input line: its id, and a running request or why there is none."""

    id: Any
    running: tuple[Request, RequestHandle] | None
    error: RequestError | None


def generate_lines(engine: Engine, source: Iterable[str], sink: TextIO, defaults: Mapping[str, Any]) -> int:
    """Answers JSON lines in order, many at a time; 1 when any line was refused, else 0."""
    status = 0
    lines = _ahead(_submitted(engine, source, defaults), _LINES_AHEAD)
    for line in tqdm(lines, unit=" lines", disable=None):  # None: only on a terminal
        try:
            records = _records(line)
        except RequestError as error:
            records = [{"id": line.id, "error": {"field": error.field, "message": error.message}}]
            status = 1
        for record in records:
            sink.write(json.dumps(record, ensure_ascii=False) + "\n")
        sink.flush()
    return status


def _ahead(lines: Iterator[_Line], count: int) -> Iterator[_Line]:
    """The same items, each drawn from `lines` long before it is given: what keeps the engine's batch full."""
    waiting = collections.deque()
    for line in lines:
        waiting.append(line)
        if len(waiting) >= count:
            yield waiting.popleft()
    yield from waiting


def _submitted(engine: Engine, source: Iterable[str], defaults: Mapping[str, Any]) -> Iterator[_Line]:
    for number, text in enumerate(source):
        if not text.strip():
            continue
        line_id: Any = number
        try:
            fields = _parsed(text)
            line_id = fields.pop("id", number)
            request = _request(engine, fields, defaults)
            yield _Line(line_id, (request, engine.submit(request, bounded=False)), None)
        except RequestError as error:
            yield _Line(line_id, None, error)


def _parsed(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError("line", f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("line", "is not a JSON object")
    return fields


def _request(engine: Engine, fields: dict[str, Any], defaults: Mapping[str, Any]) -> Request:
    """A request from one prompt field; what else is in `fields` are sampling parameters."""
    given = [name for name in _PROMPT_FIELDS if name in fields]
    if len(given) != 1:
        raise RequestError("prompt", f"give exactly one of {', '.join(_PROMPT_FIELDS)}")
    prompt = fields.pop(given[0])
    sampling = fields.pop("sampling_params", {})
    if not isinstance(sampling, dict):
        raise RequestError("sampling_params", "must be an object")
    params = SamplingParams.from_dict(_merged(defaults, {**sampling, **fields}))
    return Request(rid=uuid.uuid4().hex, input_ids=_input_ids(engine, given[0], prompt), sampling=params)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given goes before the defaults; a grammar goes before one of another kind too."""
    if any(given.get(kind) is not None for kind in GRAMMAR_KINDS):
        defaults = {name: value for name, value in defaults.items() if name not in GRAMMAR_KINDS}
    return {**defaults, **given}


def _input_ids(engine: Engine, field: str, prompt: Any) -> tuple[int, ...]:
    if field == "messages":
        return tuple(engine.tokenizer.encode_chat(prompt))
    if field == "input_ids":
        if not isinstance(prompt, list) or not all(type(token_id) is int for token_id in prompt):
            raise RequestError(field, "must be a list of token ids")
        return tuple(prompt)
    if not isinstance(prompt, str):
        raise RequestError(field, "must be a text")
    return tuple(engine.tokenizer.encode(prompt))


def _records(line: _Line) -> list[dict[str, Any]]:
    """One record per sample. Raises RequestError for a line that was refused, by now or while its grammar compiled."""
    if line.error is not None:
        raise line.error
    assert line.running is not None
    request, handle = line.running
    return [_record(line.id, sample, has_index=request.sampling.n > 1) for sample in _samples(request, handle)]


def _record(line_id: Any, sample: GenerateOutput, *, has_index: bool) -> dict[str, Any]:
    assert sample.finish is not None
    assert sample.receipt is not None
    finish = {name: value for name, value in dataclasses.asdict(sample.finish).items() if value is not None}
    return {
        "id": line_id,
        **({"index": sample.index} if has_index else {}),
        "text": sample.text,
        "finish_reason": finish,
        "prompt_tokens": sample.receipt.prompt_tokens,
        "completion_tokens": sample.receipt.completion_tokens,
        "cached_tokens": sample.receipt.cached_tokens,
    }


def _samples(request: Request, handle: RequestHandle) -> list[GenerateOutput]:
    samples = [GenerateOutput(request.rid, i, request.input_ids) for i in range(request.sampling.n)]
    for delta in handle:
        samples[delta.index].add(delta)
    return samples
