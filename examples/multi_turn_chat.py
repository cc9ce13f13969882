"""A conversation. Every turn sends all of it, and computes only what is new.

python examples/multi_turn_chat.py [--url http://127.0.0.1:30000]
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

QUESTIONS = (
    "What is the capital of France?",
    "Which river runs through it?",
    "What should I eat there?",
    "And what is the capital of Italy?",
)


@sgl.function
def chat(s, questions):
    s += sgl.system("You are a helpful travel guide. You answer in one short sentence.")
    for number, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{number}", max_tokens=32, stop=["\n"]))


def main(backend: Any) -> sgl.ProgramState:
    state = chat.run(questions=QUESTIONS, temperature=0, backend=backend)
    for number, question in enumerate(QUESTIONS):
        used = state.get_meta_info(f"answer_{number}")
        print(f"user:      {question}")
        print(f"assistant: {state[f'answer_{number}']}")
        print(f"           [{used['cached_tokens']} of {used['prompt_tokens']} prompt tokens were cached]")
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
