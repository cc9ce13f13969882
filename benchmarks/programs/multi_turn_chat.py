"""Conversations of several turns with long questions and short answers, as in the paper.

By the API every turn sends the messages so far.
"""

from __future__ import annotations

import random
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

NUM_TURNS = 4
ANSWER_TOKENS = 12


@sgl.function
def chat(s, instructions, questions):
    s += sgl.system(instructions)
    for turn in range(NUM_TURNS):
        s += sgl.user(questions[turn])
        s += sgl.assistant(sgl.gen(f"answer_{turn}", max_tokens=ANSWER_TOKENS))


def plain(client: Plain, instructions: str, questions: list[str]) -> list[str]:
    messages = [{"role": "system", "content": instructions}]
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": client.chat(messages, ANSWER_TOKENS)})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    instructions = f"You know this town: {texts.paragraph(rng, size.shared)} Answer in a few words."
    return [
        {
            "instructions": instructions,
            "questions": [f"{texts.paragraph(rng, size.own)} What does this tell us?" for _ in range(NUM_TURNS)],
        }
        for _ in range(size.programs)
    ]


WORKLOAD = Workload(
    name="multi_turn_chat",
    program=chat,
    draw=draw,
    answer=lambda state: [state[f"answer_{turn}"] for turn in range(NUM_TURNS)],
    plain=plain,
    full=Size(programs=3, shared=6, own=2),
    small=Size(programs=3, shared=2, own=1),
)
