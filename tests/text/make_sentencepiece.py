"""Makes data/tiny_bpe.model and data/tiny_bpe.json: a small model of Llama 2's kind, and what sentencepiece says of it.

Run where the sentencepiece package is installed (the project does not need it): python tests/text/make_sentencepiece.py
"""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent / "data"
CORPUS = [
    "The radix tree maps prompt prefixes to pages of keys and values.",
    "A page that is shared is read by many sequences and written by none.",
    "Chunked prefill keeps long prompts from blocking short ones.",
    "the tree, the pages and the scheduler: the three things that a server needs",
    "def page(tree, index):\n    return tree[index] + 1",
    "naïve café, Straße, Привет мир, 你好世界",
    "0 1 2 3 4 5 6 7 8 9 10 42 1000 2024",
]
TEXTS = [
    "",
    " ",
    "the",
    " the",
    "  the",
    "The tree is shared.",
    "trailing  ",
    "two  spaces   three",
    "new\nline\n\n",
    "\ttab",
    "2024 has 365 days",
    "naïve café",
    "Привет",
    "unseen: 😀 ☃ 日本",
    "<0x41>",
    "▁",
    "prefix prefixes prefixing",
    "XYZ!?",
]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(FOLDER / "tiny_bpe"),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["[TOOL]"],
        pad_id=-1,
        minloglevel=2,
    )
    (FOLDER / "tiny_bpe.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tiny_bpe.model"))
    cases = [{"text": text, "ids": (ids := processor.encode(text)), "decoded": processor.decode(ids)} for text in TEXTS]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "tiny_bpe.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
