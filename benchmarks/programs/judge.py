"""Judges (branch, solve, merge): remarks and a grade for several sides of an article, then a grade for the whole.

By the API a remark is one call, and a grade one scoring call for each possible grade. To take the grade from the first
word of an answer would be a single call, but this model does not keep to the grades.
"""

from __future__ import annotations

import random
from typing import Any

import sgjax as sgl
from benchmarks.programs import texts
from benchmarks.programs.plain import Plain
from benchmarks.programs.workload import Size, Workload

SIDES = ("clarity", "evidence", "style")
GRADES = [" good", " fair", " poor"]
REMARK_TOKENS = 16


@sgl.function
def judge(s, article):
    s += article
    sides = s.fork(len(SIDES))
    sides += [
        f"The {side} of this article shows"
        + sgl.gen("remark", max_tokens=REMARK_TOKENS, stop="\n")
        + f"\nThe {side} is"
        + sgl.select("grade", GRADES)
        for side in SIDES
    ]
    sides.join()
    for side, remark, grade in zip(SIDES, s["remark"], s["grade"], strict=True):
        s += f"The {side} shows{remark} and is{grade}.\n"
    s += "All in all the article is" + sgl.select("whole", GRADES)


def plain(client: Plain, article: str) -> list[str]:
    remarks, grades = [], []
    for side in SIDES:
        text = f"{article}The {side} of this article shows"
        remarks.append(client.complete(text, REMARK_TOKENS, stop=["\n"]))
        grades.append(client.select(f"{text}{remarks[-1]}\nThe {side} is", GRADES))
    text = article
    for side, remark, grade in zip(SIDES, remarks, grades, strict=True):
        text += f"The {side} shows{remark} and is{grade}.\n"
    return [*grades, client.select(text + "All in all the article is", GRADES)]


def draw(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    rules = f"You judge articles as this editor does. {texts.paragraph(rng, size.shared)}\n\n"
    return [{"article": f"{rules}Article: {texts.paragraph(rng, size.own)}\n\n"} for _ in range(size.programs)]


WORKLOAD = Workload(
    name="judge",
    program=judge,
    draw=draw,
    answer=lambda state: [*state["grade"], state["whole"]],
    plain=plain,
    full=Size(programs=2, shared=2, own=4),
    small=Size(programs=2, shared=2, own=6),
)
