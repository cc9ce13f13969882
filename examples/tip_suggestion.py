"""Tips, all of them explained at the same time, and then a summary.

python examples/tip_suggestion.py [--url http://127.0.0.1:30000]

The explanations are forks of one state: what they have in common is computed once.
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

TIPS = ("balanced meals", "regular exercise", "enough sleep")


@sgl.function
def suggest(s, topic):
    numbered = " ".join(f"({number}) {tip}." for number, tip in enumerate(TIPS, 1))
    s += sgl.system("You give practical advice in plain words.")
    s += sgl.user(f"What helps with {topic}?")
    s += sgl.assistant(f"Here are {len(TIPS)} tips for {topic}: {numbered}")
    forks = s.fork(len(TIPS))
    forks += [
        sgl.user(f"Explain the tip about {tip} in one sentence.")
        + sgl.assistant(sgl.gen("detail", max_tokens=48, stop=["\n"]))
        for tip in TIPS
    ]
    forks.join()
    details = "\n".join(f"- {tip}: {detail}" for tip, detail in zip(TIPS, s["detail"], strict=True))
    s += sgl.user(f"These are your explanations:\n{details}\nNow say in one sentence what matters most.")
    s += sgl.assistant("What matters most is" + sgl.gen("summary", max_tokens=48, stop=[".", "\n"]) + ".")


def main(backend: Any) -> sgl.ProgramState:
    state = suggest.run(topic="staying healthy", temperature=0, backend=backend)
    for tip, detail in zip(TIPS, state["detail"], strict=True):
        print(f"{tip}: {detail}")
    print(f"What matters most is{state['summary']}.")
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
