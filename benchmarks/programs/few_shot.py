"""Few-shot multiple choice: solved examples of a subject, a sentence, and four ways in which it may go on.

The endings are scored by their log-probabilities, as benchmarks such as HellaSwag are. By the API that is one call per
ending which echoes its prompt, as evaluation harnesses do it.
"""

from __future__ import annotations

import random
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

NUM_SUBJECTS = 2
NUM_ENDINGS = 4


@sgl.function
def few_shot(s, examples, beginning, endings):
    s += examples + "Beginning: " + beginning + "\nEnding:"
    s += sgl.select("ending", endings)


def plain(client: Plain, examples: str, beginning: str, endings: list[str]) -> str:
    return client.select(f"{examples}Beginning: {beginning}\nEnding:", endings)


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    subjects = [
        "".join(f"Beginning: {texts.sentence(rng)}\nEnding:{_ending(rng)}\n\n" for _ in range(size.shared))
        for _ in range(NUM_SUBJECTS)
    ]
    return [
        {
            "examples": subjects[number % NUM_SUBJECTS],
            "beginning": texts.paragraph(rng, size.own),
            "endings": [_ending(rng) for _ in range(NUM_ENDINGS)],
        }
        for number in range(size.programs)
    ]


def _ending(rng: random.Random) -> str:
    return f" Then {rng.choice(texts.PEOPLE)} bought {rng.randint(2, 99)} {rng.choice(texts.THINGS)}."


WORKLOAD = Workload(
    name="few_shot",
    program=few_shot,
    draw=draw,
    answer=lambda state: state["ending"],
    plain=plain,
    full=Size(programs=4, shared=4, own=1),
    small=Size(programs=4, shared=3, own=1),
)
