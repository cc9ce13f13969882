"""Tree of thought: plans for a task, solutions of each plan, a verdict on each solution.

By the API a plan and a solution are one call each, and a verdict one scoring call for each possible verdict.
"""

from __future__ import annotations

import random
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

PLANS = ("by walking", "with two friends")
SOLUTIONS = ("First", "Quickly")
VERDICTS = [" good", " bad"]
PLAN_TOKENS, SOLUTION_TOKENS = 12, 16
ASK = "\nVerdict:"


@sgl.function
def tree_of_thought(s, task):
    s += task
    solutions = []
    for plan, branch in zip(PLANS, s.fork(len(PLANS)), strict=True):
        branch += f"\nPlan, {plan}:" + sgl.gen("plan", max_tokens=PLAN_TOKENS, stop="\n")
        for start, solution in zip(SOLUTIONS, branch.fork(len(SOLUTIONS)), strict=True):
            solution += f"\nSolution: {start}," + sgl.gen("solution", max_tokens=SOLUTION_TOKENS, stop="\n")
            solution += ASK + sgl.select("verdict", VERDICTS)
            solutions.append(solution)
    return [(solution["plan"], solution["solution"], solution["verdict"]) for solution in solutions]


def plain(client: Plain, task: str) -> list[tuple[str, str, str]]:
    found = []
    for way in PLANS:
        plan = client.complete(f"{task}\nPlan, {way}:", PLAN_TOKENS, stop=["\n"])
        for start in SOLUTIONS:
            text = f"{task}\nPlan, {way}:{plan}\nSolution: {start},"
            solution = client.complete(text, SOLUTION_TOKENS, stop=["\n"])
            found.append((plan, solution, client.select(text + solution + ASK, VERDICTS)))
    return found


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    rules = f"Here is what you know about the town.\n{texts.paragraph(rng, size.shared)}\n\n"
    return [
        {"task": f"{rules}{texts.paragraph(rng, size.own)}\nTask: find {rng.choice(texts.PEOPLE)} in {city}."}
        for city in rng.sample(texts.CITIES, size.programs)
    ]


WORKLOAD = Workload(
    name="tree_of_thought",
    program=tree_of_thought,
    draw=draw,
    answer=lambda state: state.ret_value,
    plain=plain,
    full=Size(programs=2, shared=4, own=3),
    small=Size(programs=2, shared=4, own=2),
)
