"""Tree of thought: several ideas, several ways to go on from each, a score for every end, and the best path.

python examples/tree_of_thought.py [--url http://127.0.0.1:30000]

Every branch shares the text of the branch that it grew from, which is computed once.
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

NUM_IDEAS, NUM_PLANS = 3, 2
VERDICTS = (" yes", " no")

EXAMPLE = """Task: Plan a sunny afternoon for two friends.
Idea: A bicycle tour along the river.
Plan: They pack bread and cherries, ride to the old mill and swim there.
Would they enjoy it? Answer: yes

"""


@sgl.function
def tree_of_thought(s, task):
    s += f"{EXAMPLE}Task: {task}\n"
    ends = []
    for idea, branch in enumerate(s.fork(NUM_IDEAS)):
        branch += "Idea:" + sgl.gen("idea", max_tokens=24, stop="\n", temperature=0.8, seed=idea)
        for plan, end in enumerate(branch.fork(NUM_PLANS)):
            end += "\nPlan:" + sgl.gen("plan", max_tokens=40, stop="\n", temperature=0.8, seed=plan)
            end += "\nWould they enjoy it? Answer:" + sgl.select("verdict", VERDICTS)
            ends.append(end)
    return ends


def score(end: sgl.ProgramState) -> float:
    """How much likelier the model finds "yes" than "no", as the logarithm of their ratio."""
    yes, no = end.get_meta_info("verdict")["normalized_prompt_logprobs"]
    return yes - no


def main(backend: Any) -> sgl.ProgramState:
    state = tree_of_thought.run(task="Plan a rainy Sunday for a family with children.", backend=backend)
    for end in sorted(state.ret_value, key=score, reverse=True):
        print(f"{score(end):+.2f} {end['idea'].strip()}\n        {end['plan'].strip()}")
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
