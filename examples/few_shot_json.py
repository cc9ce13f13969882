"""Facts from sentences, as JSON: a few solved examples, then a schema that the answer has to follow.

python examples/few_shot_json.py [--url http://127.0.0.1:30000]

All requests begin with the same examples, which are computed once.
"""

from __future__ import annotations

import json
from typing import Any

from backend import open_backend, print_usage

import sgjax as sgl

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 24},
        "job": {"enum": ["baker", "doctor", "pilot", "teacher", "none"]},
    },
    "required": ["name", "age", "city", "job"],
    "additionalProperties": False,
}

# As compact as the JSON that a schema gives.
EXAMPLES = """Write down what the sentence says about the person, as JSON.

Sentence: Ana Silva has been a doctor in Lisbon for years; she turned 41 in May.
{"name":"Ana Silva","age":41,"city":"Lisbon","job":"doctor"}

Sentence: In Accra lives the pilot Kofi Mensah, who is 26.
{"name":"Kofi Mensah","age":26,"city":"Accra","job":"pilot"}

Sentence: Mei Lin, 68, has stopped working and grows roses in Taipei.
{"name":"Mei Lin","age":68,"city":"Taipei","job":"none"}

"""

SENTENCES = (
    "Tom Becker is 34 and bakes bread in Hamburg as a baker.",
    "In Oslo, everybody knows the teacher Ingrid Dahl, who is 57.",
    "Rosa Diaz is a 29 year old pilot from Lima.",
    "Our doctor in Cairo is Omar Farouk; he is 45.",
)


@sgl.function
def extract(s, sentence):
    s += EXAMPLES
    s += f"Sentence: {sentence}\n" + sgl.gen("json", max_tokens=80, json_schema=SCHEMA)


def main(backend: Any) -> list[sgl.ProgramState]:
    states = extract.run_batch([{"sentence": sentence} for sentence in SENTENCES], temperature=0, backend=backend)
    for sentence, state in zip(SENTENCES, states, strict=True):
        print(sentence)
        print(f"  {json.loads(state['json'])}")
    print_usage(*states)
    return states


if __name__ == "__main__":
    with open_backend() as backend:
        main(backend)
