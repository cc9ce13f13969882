"""JSON decoding: what a sentence says about a person, by a schema, after solved examples.

By the API that is a chat completion with the same schema as its `response_format`.
"""

from __future__ import annotations

import json
import random
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

MAX_TOKENS = 48
SCHEMA = {
    "type": "object",
    "properties": {
        "person": {"enum": texts.PEOPLE},
        "city": {"enum": texts.CITIES},
        "job": {"enum": texts.JOBS},
        "born": {"type": "integer", "minimum": 1900, "maximum": 2020},
    },
    "required": ["person", "city", "job", "born"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


@sgl.function
def extract(s, examples, text):
    s += sgl.system(examples)
    s += sgl.user(text)
    s += sgl.assistant(sgl.gen("json", max_tokens=MAX_TOKENS, json_schema=SCHEMA))


def plain(client: Plain, examples: str, text: str) -> str:
    messages = [{"role": "system", "content": examples}, {"role": "user", "content": text}]
    return client.chat(messages, MAX_TOKENS, response_format=FORMAT)


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    examples = "Write down what a text says about a person, as JSON."
    for _ in range(size.shared):
        text, facts = _text(rng, 1)
        examples += f"\n\n{text}\n{json.dumps(facts, separators=(',', ':'))}"
    return [{"examples": examples, "text": _text(rng, size.own)[0]} for _ in range(size.programs)]


def _text(rng: random.Random, num_sentences: int) -> tuple[str, dict[str, Any]]:
    facts = {
        "person": rng.choice(texts.PEOPLE),
        "city": rng.choice(texts.CITIES),
        "job": rng.choice(texts.JOBS),
        "born": rng.randint(1920, 2000),
    }
    about = "{person} was born in {city} in {born} and works as a {job} now. ".format(**facts)
    return about + texts.paragraph(rng, num_sentences), facts


WORKLOAD = Workload(
    name="json_decoding",
    program=extract,
    draw=draw,
    answer=lambda state: state["json"],
    plain=plain,
    full=Size(programs=8, shared=7, own=2),
    small=Size(programs=6, shared=3, own=1),
)
