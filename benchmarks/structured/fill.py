"""The embedded model fills varied schemas: do all answers parse and validate?"""

from __future__ import annotations

import collections
import json
import time
from typing import Any

import jsonschema

import sgjax
from benchmarks.structured.schemas import make_schema

PROMPT = [{"role": "user", "content": "Make up an example record. Answer with JSON."}]


def fill(engine: sgjax.Engine, num_schemas: int, **sampling: Any) -> dict[str, Any]:
    """Greedily fills schemas 0 .. num_schemas - 1, all in one call.

    Returns:
      Counts of the answers that parse, that validate (formats are annotations), and whose formats Python's libraries
      take too, which know no year 0000; of the ends; and the share of forced tokens.
    """
    schemas = [make_schema(seed) for seed in range(num_schemas)]
    start = time.perf_counter()
    outputs = engine.generate(
        messages=[PROMPT] * num_schemas,
        sampling_params=[
            {"temperature": 0, "max_new_tokens": 400, **sampling, "json_schema": schema} for schema in schemas
        ],
    )
    seconds = time.perf_counter() - start
    validity = [_validity(schema, output.text) for schema, output in zip(schemas, outputs, strict=True)]
    num_tokens = sum(len(output.output_ids) for output in outputs)
    return {
        "schemas": num_schemas,
        "parsed": sum(found != "unparsed" for found in validity),
        "validated": sum(found in ("valid", "format") for found in validity),
        "formats_taken": sum(found == "valid" for found in validity),
        "ends": dict(collections.Counter(output.finish.kind for output in outputs)),
        "output_tokens": num_tokens,
        "forced_share": sum(output.receipt.forced_tokens for output in outputs) / num_tokens,
        "seconds": seconds,
    }


def _validity(schema: dict[str, Any], text: str) -> str:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return "unparsed"
    validator = jsonschema.Draft202012Validator
    if not validator(schema).is_valid(value):
        return "invalid"
    return "valid" if validator(schema, format_checker=validator.FORMAT_CHECKER).is_valid(value) else "format"
