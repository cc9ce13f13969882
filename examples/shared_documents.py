"""Answers from documents (RAG): the best documents for a question, then an answer from these.

python examples/shared_documents.py [--url http://127.0.0.1:30000]

Documents stand in the prompt before the question, in a fixed order, so that questions about the same ones share them;
`run_batch` runs those next to each other.
"""

from __future__ import annotations

from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

DOCUMENTS = (
    "The museum is open from Tuesday to Sunday, from 10 in the morning to 6 in the evening. It is closed on Mondays. "
    "On Thursdays the museum stays open until 9 in the evening.\n",
    "A ticket for adults costs 12 euros. A ticket for children costs 4 euros. Students with a card pay 7 euros. "
    "Tickets are free on the first Sunday of the month.\n",
    "The museum is in Harbour Street 5. Tram line 3 stops in front of the museum. The nearest car park is below the "
    "market square, a walk of ten minutes.\n",
    "The cafe on the ground floor serves soup, cake and coffee. Visitors may not bring food into the halls. A picnic "
    "in the garden behind the building is welcome.\n",
)
EXAMPLE = """The harbour lies east of the old town. Ferries leave at 8 and at 14 o'clock.
Bread is baked in Mill Lane. The bakery also sells milk.
Question: Where is bread baked?
Answer: Bread is baked in Mill Lane.

"""
QUESTIONS = (
    "How much is a ticket for children?",
    "On which day is the museum closed?",
    "When are tickets free?",
    "Where is a picnic welcome?",
    "In which street is the museum?",
)
NUM_FOUND = 2


def words(text: str) -> set[str]:
    return {word.strip(".,?").lower() for word in text.split() if len(word) > 3}


def retrieve(question: str) -> str:
    """The documents with the most words of the question, in the order of the collection."""
    best = sorted(DOCUMENTS, key=lambda document: -len(words(question) & words(document)))[:NUM_FOUND]
    return "".join(document for document in DOCUMENTS if document in best)


@sgl.function
def answer(s, documents, question):
    s += EXAMPLE + documents + "Question: " + question
    s += "\nAnswer:" + sgl.gen("answer", max_tokens=32, stop=[".", "\n"]) + "."


def main(backend: Any) -> list[sgl.ProgramState]:
    batch = [{"documents": retrieve(question), "question": question} for question in QUESTIONS]
    states = answer.run_batch(batch, temperature=0, backend=backend)
    for question, state in zip(QUESTIONS, states, strict=True):
        print(f"{question}{state['answer']}.")
    print_usage(*states)
    return states


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
