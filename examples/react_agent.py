"""An agent that reasons and acts (ReAct): it looks up cities in a table until it can answer.

python examples/react_agent.py [--url http://127.0.0.1:30000]

Every step appends to the same text, so that only the last thought and its observation are new to the model.
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

POPULATIONS = {
    "Bergen": 286_000,
    "Porto": 232_000,
    "Lyon": 520_000,
    "Turin": 841_000,
    "Ghent": 265_000,
    "Graz": 292_000,
}
CITIES = "|".join(POPULATIONS)
ACTION = rf" (lookup|finish)\[({CITIES})\]"
MAX_STEPS = 5


def observation(city: str) -> str:
    """What the tool says."""
    return f"Observation: {city} has {POPULATIONS[city]:,} inhabitants.\n"


def solved(first: str, second: str) -> str:
    """A question with the steps to its answer."""
    more, less = sorted((first, second), key=lambda city: -POPULATIONS[city])
    return (
        f"Question: Which of {first} and {second} has more inhabitants?\n"
        f"Thought: I need the inhabitants of {first}.\nAction: lookup[{first}]\n{observation(first)}"
        f"Thought: Now I need the inhabitants of {second}.\nAction: lookup[{second}]\n{observation(second)}"
        f"Thought: {POPULATIONS[more]:,} is more than {POPULATIONS[less]:,}, so the answer is {more}.\n"
        f"Action: finish[{more}]\n\n"
    )


EXAMPLES = "Answer with the help of a table. The actions are lookup[city] and finish[city].\n\n" + (
    solved("Bergen", "Porto") + solved("Lyon", "Turin")
)


@sgl.function
def agent(s, question):
    s += EXAMPLES + f"Question: {question}\n"
    for step in range(MAX_STEPS):
        s += "Thought:" + sgl.gen(f"thought_{step}", max_tokens=40, stop="\n") + "\n"
        s += "Action:" + sgl.gen(f"action_{step}", regex=ACTION) + "\n"
        verb, city = s[f"action_{step}"].strip(" ]").split("[")
        if verb == "finish":
            return city
        s += observation(city)
    return None


def main(backend: Any) -> sgl.ProgramState:
    question = "Which of Ghent and Graz has more inhabitants?"
    state = agent.run(question=question, temperature=0, backend=backend)
    print(state.text().removeprefix(EXAMPLES))
    print(f"answer: {state.ret_value}")
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
