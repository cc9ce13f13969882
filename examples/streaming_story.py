"""A story that appears as it is written, with a title that is written after it.

python examples/streaming_story.py [--url http://127.0.0.1:30000]
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl


@sgl.function
def tell(s, hero):
    s += sgl.system("You tell short stories for children.")
    s += sgl.user(f"Tell me a story about {hero}.")
    s += sgl.assistant(sgl.gen("story", max_tokens=80))
    s += sgl.user("What is its title?")
    s += sgl.assistant('"' + sgl.gen("title", max_tokens=12, regex=r"[A-Z][A-Za-z' ]{2,40}\"") + "\n")


def main(backend: Any) -> sgl.ProgramState:
    state = tell.run(hero="a lighthouse keeper and a gull", temperature=0, stream=True, backend=backend)
    for piece in state.text_iter("story"):
        print(piece, end="", flush=True)
    print(f'\n\nTitle: "{state["title"]}')
    print_usage(state)
    return state


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
