"""Branch, solve, merge: a judge looks at an essay from several sides at the same time, then gives one grade.

python examples/branch_solve_merge.py [--url http://127.0.0.1:30000]

The essay is computed once, for all sides and for the final grade.
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

ESSAY = """Why our town should keep its library open

Our library is small, but for many people here it is the only warm and quiet place where nobody has to buy anything.
Pupils do their homework in it, and old people read the newspaper. Last year it lent 40,000 books, more than ever.
Some say that everything is on the internet now. That is not so: many families have no computer at home, and the library
lends those too. It costs each of us nine euros a year, which is less than one ticket to the cinema. If we close it, we
save little and lose a great deal. I therefore ask the council to keep the library open, also on Saturdays."""

SIDES = ("clarity", "evidence", "style")
VERDICTS = (" excellent", " good", " fair", " poor")


@sgl.function
def judge(s, essay):
    s += f"Here is an essay, and what a fair teacher says about it.\n\n{essay}\n\n"
    sides = s.fork(len(SIDES))
    sides += [
        f"The {side} of this essay is" + sgl.select("verdict", VERDICTS)
        + ", because" + sgl.gen("reason", max_tokens=32, stop=[".", "\n"])
        for side in SIDES
    ]  # fmt: skip
    sides.join()
    for side, verdict, reason in zip(SIDES, s["verdict"], s["reason"], strict=True):
        s += f"The {side} is{verdict}, because{reason}.\n"
    s += "As a whole, this essay is" + sgl.select("overall", VERDICTS) + "."


def main(backend: Any) -> sgl.ProgramState:
    state = judge.run(essay=ESSAY, temperature=0, backend=backend)
    print(state.text().removeprefix(f"Here is an essay, and what a fair teacher says about it.\n\n{ESSAY}\n\n"))
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
