"""Constrained decoding on the host: the JSON-Schema-Test-Suite, and the time of token masks.

    python -m benchmarks.grammar suite [--out benchmarks/results/grammar_schema_suite.json]
    python -m benchmarks.grammar masks [--out benchmarks/results/grammar_masks.json]

Both use the embedded model's tokenizer. `suite` counts what is accepted and refused by the suite's files, which are one
per keyword. `masks` times `Matcher.fill` on one thread while each schema's example is written token by token, and
`fill_masks` of 64 rows, each at another place of its example. It also counts, for three layouts of JSON, how many of an
example's tokens are forced: those cost no step of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grammar_suite import Feeder, run_suite
from benchmarks.radix import git_commit, processor_name
from sgjax.grammar import Grammar, GrammarCompiler, fill_masks
from sgjax.models.checkpoint.embedded import fetch_embedded
from sgjax.sampling_params import GrammarSpec
from sgjax.text import Tokenizer, load_tokenizer

NUM_ROWS = 64
REPEATS = 20

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
ORDER = {
    "$ref": "#/$defs/order",
    "$defs": {
        "order": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
                "status": {"enum": ["open", "paid", "shipped"]},
                "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1},
                "note": {"anyOf": [{"type": "string", "maxLength": 200}, {"type": "null"}]},
            },
            "required": ["id", "status", "lines"],
        },
        "line": {
            "type": "object",
            "properties": {"article": {"type": "string"}, "count": {"type": "integer"}, "price": {"type": "number"}},
            "required": ["article", "count", "price"],
            "additionalProperties": False,
        },
    },
}
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {  # options and the separators of the example
    "compact": ({}, (",", ":")),
    "one space": ({"item_separator": ", ", "key_separator": ": "}, (", ", ": ")),
    "any whitespace": ({"whitespace_flexible": True}, (", ", ": ")),
}
EXAMPLES: dict[str, tuple[GrammarSpec, str]] = {
    "person": (
        GrammarSpec("json_schema", json.dumps(PERSON)),
        '{"name":"Ada Lovelace","age":36,"email":"ada@example.com","tags":["mathematics","poetry of science"]}',
    ),
    "order": (
        GrammarSpec("json_schema", json.dumps(ORDER)),
        '{"id":"AB-123456","status":"paid","lines":[{"article":"a lamp, green","count":2,"price":19.5},'
        '{"article":"bulb","count":10,"price":0.99}],"note":"leave it at the door"}',
    ),
    "any_json": (
        GrammarSpec("json_schema", '{"type": "object"}'),
        '{"title":"A day in June","words":[1,2.5,true,null],"nested":{"key":"value with several words"}}',
    ),
    "regex": (GrammarSpec("regex", r"(\+[0-9]{1,3} )?[0-9]{3}( [0-9]{2,4}){2,4}"), "+49 170 1234 5678"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["suite", "masks"])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    tokenizer = load_tokenizer(fetch_embedded())
    compiler = make_compiler(tokenizer)
    result = machine() | (suite if args.what == "suite" else masks)(compiler, tokenizer)
    compiler.close()
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def make_compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(
        tokenizer.to_json(), vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.eos_token_ids, cache_size=1000
    )


def machine() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "processor": processor_name(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "llguidance": version("llguidance"),
        "commit": git_commit(),
    }


def suite(compiler: GrammarCompiler, tokenizer: Tokenizer) -> dict[str, Any]:
    start = time.perf_counter()
    table, reasons, wrong = run_suite(compiler, Feeder(tokenizer, tokenizer.vocab_size))
    rows = {name: dataclasses.asdict(counts) for name, counts in table.items()}
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    columns = list(total)
    print(f"{'':28}" + "".join(f"{column:>17}" for column in columns))
    for name, row in (rows | {"total": total}).items():
        print(f"{name:28}" + "".join(f"{row[column]:17}" for column in columns))
    for line in wrong:
        print("wrongly accepted:", line)
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "total": total, "reasons_to_refuse": reasons, "files": rows}


def masks(compiler: GrammarCompiler, tokenizer: Tokenizer) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    width = -(-tokenizer.vocab_size // 32)
    for name, (spec, text) in EXAMPLES.items():
        start = time.perf_counter()
        grammar = compiler.compile(spec).result()
        compile_ms = (time.perf_counter() - start) * 1e3
        token_ids = tokenizer.encode(text, False)
        figures[name] = {
            "num_tokens": len(token_ids),
            "compile_ms": round(compile_ms, 1),
            "fill_us": percentiles(time_fill(grammar, token_ids, width)),
            f"fill_{NUM_ROWS}_rows_us": percentiles(time_rows(grammar, token_ids, width)),
        }
        print(name, json.dumps(figures[name]))
    layouts = {
        name: {example: count_forced(compiler, tokenizer, example, *layout) for example in ("person", "order")}
        for name, layout in LAYOUTS.items()
    }
    for name, counts in layouts.items():
        print(f"{name:16}", json.dumps(counts))
    return {"vocab_size": tokenizer.vocab_size, "unit": "microseconds", "figures": figures, "forced_tokens": layouts}


def count_forced(
    compiler: GrammarCompiler, tokenizer: Tokenizer, example: str, options: dict[str, Any], separators: tuple[str, str]
) -> dict[str, int]:
    """Tokens of an example in one layout, and how many of them are forced."""
    spec, text = EXAMPLES[example]
    schema = json.loads(spec.text) | {"x-guidance": options}
    matcher = compiler.compile(GrammarSpec("json_schema", json.dumps(schema))).result().matcher()
    rest = json.dumps(json.loads(text), separators=separators).encode()
    num_tokens = num_forced = 0
    while rest:
        forced = matcher.forced()
        token_ids = forced or tokenizer.encode(rest.decode(), False)[:1]
        assert all(map(matcher.accept, token_ids))
        rest = rest[sum(len(tokenizer.token_bytes(token_id)) for token_id in token_ids) :]
        num_tokens += len(token_ids)
        num_forced += len(forced)
    return {"num_tokens": num_tokens, "num_forced": num_forced}


def time_fill(grammar: Grammar, token_ids: list[int], width: int) -> list[float]:
    """Microseconds of every mask, on one thread."""
    mask = np.zeros(width, np.int32)
    times = []
    for _ in range(REPEATS):
        matcher = grammar.matcher()
        for token_id in token_ids:
            start = time.perf_counter_ns()
            matcher.fill(mask)
            times.append((time.perf_counter_ns() - start) / 1e3)
            assert matcher.accept(token_id)
    return times


def time_rows(grammar: Grammar, token_ids: list[int], width: int) -> list[float]:
    """Microseconds of every step of a batch, whose rows are at different places of the text."""
    masks = np.zeros((NUM_ROWS, width), np.int32)
    matchers = [grammar.matcher() for _ in range(NUM_ROWS)]
    places = [row % len(token_ids) for row in range(NUM_ROWS)]
    for matcher, place in zip(matchers, places, strict=True):
        assert all(map(matcher.accept, token_ids[:place]))
    times = []
    for _ in range(REPEATS * 4):
        start = time.perf_counter_ns()
        fill_masks([(matcher, row) for row, matcher in enumerate(matchers)], masks)
        times.append((time.perf_counter_ns() - start) / 1e3)
        for row in range(NUM_ROWS):
            assert matchers[row].accept(token_ids[places[row]])
            places[row] += 1
            if places[row] == len(token_ids):
                matchers[row], places[row] = grammar.matcher(), 0
    return times


def percentiles(times: Iterable[float]) -> dict[str, float]:
    p50, p99 = np.percentile(list(times), [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


if __name__ == "__main__":
    main()
