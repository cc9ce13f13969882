"""Ids, texts and chats of the embedded model's tokenizer against transformers (tests/golden/make_smollm2.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sgjax.text import Tokenizer
from sgjax.types import RequestError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/smollm2_tokens.json").read_text(encoding="utf-8"))


def test_ids_and_texts(smollm2: Tokenizer):
    for case in GOLDEN["texts"]:
        assert smollm2.encode(case["text"]) == case["ids"], case["text"]
        assert smollm2.encode(case["text"], add_special_tokens=False) == case["ids_without_special"]
        assert smollm2.decode(case["ids"], skip_special_tokens=False) == case["decoded"]
        assert smollm2.decode(case["ids"]) == case["decoded_skip_special"]


def test_batches_encode_as_singles_do(smollm2: Tokenizer):
    texts = [case["text"] for case in GOLDEN["texts"]]
    assert smollm2.encode_batch(texts) == [smollm2.encode(text) for text in texts]


def test_chats(smollm2: Tokenizer):
    for case in GOLDEN["chats"]:
        options = {"add_generation_prompt": case["add_generation_prompt"]}
        assert smollm2.apply_chat_template(case["messages"], **options) == case["rendered"]
        assert smollm2.encode_chat(case["messages"], **options) == case["ids"]


def test_facts(smollm2: Tokenizer):
    special = GOLDEN["special"]
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_token_id == special["bos"]
    assert smollm2.eos_token_ids == (special["eos"],)
    assert sorted(smollm2.special_token_ids) == special["all"]
    assert smollm2.token_to_id("<|im_end|>") == 2
    assert smollm2.id_to_token(2) == "<|im_end|>"
    assert smollm2.chat_template is not None


def test_ids_outside_the_vocabulary_have_no_text(smollm2: Tokenizer):
    assert smollm2.decode([49152, 19556, 10**6]) == "Hello"


def test_token_bytes_spell_the_text(smollm2: Tokenizer):
    for case in GOLDEN["texts"]:
        assert b"".join(map(smollm2.token_bytes, case["ids"])).decode() == case["decoded"]
    assert smollm2.token_bytes(10**6) == b""


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_lone_surrogates_are_refused(smollm2: Tokenizer, text: str):
    with pytest.raises(RequestError, match="Unicode") as error:
        smollm2.encode(text)
    assert error.value.field == "text"
    with pytest.raises(RequestError, match="Unicode"):
        smollm2.encode_batch(["fine", text])


def test_importing_is_light():
    """transformers alone takes a second to import, jax half of one."""
    code = "import sys, sgjax.text; print([m for m in ('transformers', 'torch', 'jax', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
