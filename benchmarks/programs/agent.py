"""Agents that reason and act (ReAct): every step is a thought, an action, and what the tool answers.

An agent has a budget of steps and then has to decide, so that the amount of work does not depend on the model's wit.
By the API a step is one call, whose text is searched for an action.
"""

from __future__ import annotations

import random
import re
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

NUM_STEPS = 3
THOUGHT_TOKENS, ACTION_TOKENS = 12, 8
CITY = "|".join(texts.CITIES)


@sgl.function
def agent(s, table, examples, question):
    s += examples + f"Question: {question}\n"
    for step in range(NUM_STEPS):
        s += "Thought:" + sgl.gen(f"thought_{step}", max_tokens=THOUGHT_TOKENS, stop="\n")
        s += "\nAction:" + sgl.gen(f"action_{step}", max_tokens=ACTION_TOKENS, regex=rf" lookup\[({CITY})\]")
        s += _observation(table, s[f"action_{step}"])
    s += "Answer:" + sgl.gen("answer", max_tokens=ACTION_TOKENS, regex=f" ({CITY})")


def plain(client: Plain, table: dict[str, str], examples: str, question: str) -> list[str]:
    text, actions = examples + f"Question: {question}\n", []
    for _ in range(NUM_STEPS):
        text += "Thought:"
        step = client.complete(text, THOUGHT_TOKENS + ACTION_TOKENS, stop=["\nObservation", "\n\n"])
        action = re.search(rf"Action: lookup\[({CITY})\]", step)
        actions.append(f" lookup[{action[1]}]" if action else " none")
        text += step + _observation(table, actions[-1])
    answer = client.complete(text + "Answer:", ACTION_TOKENS, stop=["\n"])
    return [*actions, answer]


def _observation(table: dict[str, str], action: str) -> str:
    city = action.partition("[")[2].rstrip("]")
    return f"\nObservation: {table.get(city, 'There is no such page.')}\n"


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    table = {city: texts.paragraph(rng, size.own) for city in texts.CITIES}
    examples = "Answer with the help of the pages about cities.\n\n"
    for _ in range(size.shared // 2):
        first, second = rng.sample(texts.CITIES, 2)
        examples += f"Question: {_question(first, second)}\n"
        for city in (first, second):
            examples += f"Thought: I have to read about {city}.\nAction: lookup[{city}]\n"
            examples += f"Observation: {table[city]}\n"
        examples += f"Answer: {first}\n\n"
    questions = [_question(*rng.sample(texts.CITIES, 2)) for _ in range(size.programs)]
    return [{"table": table, "examples": examples, "question": question} for question in questions]


def _question(first: str, second: str) -> str:
    return f"Where are there more people who make things, in {first} or in {second}?"


WORKLOAD = Workload(
    name="agent",
    program=agent,
    draw=draw,
    answer=lambda state: [*(state[f"action_{step}"] for step in range(NUM_STEPS)), state["answer"]],
    plain=plain,
    full=Size(programs=2, shared=4, own=2),
    small=Size(programs=3, shared=2, own=1),
)
