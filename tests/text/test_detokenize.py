"""Streamed text equals the whole text, and never shows what must be taken back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgjax.text import TextStream, Tokenizer
from sgjax.types import SamplingParams

# Text that byte-level BPE cuts inside characters: emoji with modifiers, CJK, combining marks, right-to-left.
PIECES = st.sampled_from(
    [
        "Hello",
        " world",
        "👩‍👩‍👧‍👦",
        "👋🏽",
        "你好，世界",  # noqa: RUF001
        "é",
        "e\u0301",
        "\n\n",
        " ",
        "مرحبا",
        "﷽",
        "𝔘",  # noqa: RUF001
        "\ufffd",
        "12",
        ".",
    ]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Cuts ids into parts of the given sizes, round and round."""
    parts, at, i = [], 0, 0
    while at < len(ids):
        size = sizes[i % len(sizes)]
        parts.append(ids[at : at + size])
        at, i = at + size, i + 1
    return parts


def stream(tokenizer: Tokenizer, parts: list[list[int]], **sampling: object) -> tuple[list[str], TextStream]:
    text_stream = TextStream(tokenizer, SamplingParams(**sampling))  # type: ignore[arg-type]
    shown = [text_stream.push(part) for part in parts]
    return [*shown, text_stream.finish()], text_stream


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(text=TEXTS, sizes=SIZES)
def test_text_comes_back(smollm2: Tokenizer, text: str, sizes: list[int]):
    shown, text_stream = stream(smollm2, cut(ids := smollm2.encode(text), sizes))
    assert "".join(shown) == text
    assert text_stream.num_tokens == len(ids)
    assert text_stream.matched is None


@given(text=TEXTS)
def test_no_piece_ends_inside_a_character(smollm2: Tokenizer, text: str):
    text = text.replace("\ufffd", "")
    shown, _ = stream(smollm2, cut(smollm2.encode(text), [1]))
    assert not any("\ufffd" in piece for piece in shown)
    assert shown[-1] == ""


@pytest.fixture(scope="session")
def byte_tokens(smollm2: Tokenizer) -> dict[int, int]:
    """The token of each single byte. Bytes that the training text never had have none."""
    spelled = {smollm2.token_bytes(i): i for i in range(smollm2.vocab_size)}
    found = {byte: spelled[bytes([byte])] for byte in range(256) if bytes([byte]) in spelled}
    assert len(found) > 200
    return found


@given(raw=st.binary(max_size=60), sizes=SIZES)
def test_broken_utf8_equals_decoding_all(smollm2: Tokenizer, byte_tokens: dict[int, int], raw: bytes, sizes: list[int]):
    raw = bytes(byte for byte in raw if byte in byte_tokens)
    ids = [byte_tokens[byte] for byte in raw]
    shown, _ = stream(smollm2, cut(ids, sizes))
    assert "".join(shown) == smollm2.decode(ids) == raw.decode(errors="replace")


@settings(max_examples=300)
@given(raw=st.lists(st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x82, 0xAC, 0xEF, 0xBF, 0xBD, 0xC3, 0x41])))
def test_nearly_whole_characters(smollm2: Tokenizer, byte_tokens: dict[int, int], raw: list[int]):
    ids = [byte_tokens[byte] for byte in raw]
    assert "".join(stream(smollm2, cut(ids, [1]))[0]) == bytes(raw).decode(errors="replace")


@given(ids=st.lists(st.integers(0, 49_200), max_size=40), sizes=SIZES, skip=st.booleans())
def test_random_tokens_equal_decoding_all(smollm2: Tokenizer, ids: list[int], sizes: list[int], skip: bool):
    """Special tokens and ids outside the vocabulary among them, between the bytes of a character too."""
    shown, _ = stream(smollm2, cut(ids, sizes), skip_special_tokens=skip)
    assert "".join(shown) == smollm2.decode(ids, skip_special_tokens=skip)


def test_a_run_of_broken_bytes_costs_no_more_per_token(smollm2: Tokenizer, byte_tokens: dict[int, int]):
    ids = [byte_tokens[0xE2]] * 4000
    text_stream = TextStream(smollm2, SamplingParams())
    began = time.monotonic()
    shown = sum(len(text_stream.push([i])) for i in ids)
    assert shown > 3900  # shown on the way, not only at the end
    assert time.monotonic() - began < 2  # decoding the whole run each time takes minutes


# --- sentencepiece -----------------------------------------------------------------------------------------------


@given(raw=st.lists(st.sampled_from([0xEF, 0xBF, 0xBD, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0x41]), max_size=40))
def test_sentencepiece_bytes(tiny_bpe: Tokenizer, raw: list[int]):
    """Broken UTF-8 is replaced as a text is; decoding all at once would give up the whole characters beside it."""
    ids = [i for byte in raw if (i := tiny_bpe.token_to_id(f"<0x{byte:02X}>")) is not None]
    assert len(ids) == len(raw)
    assert "".join(stream(tiny_bpe, cut(ids, [1]))[0]) == bytes(raw).decode(errors="replace")


@settings(max_examples=300)
@given(text=TEXTS, sizes=SIZES)
def test_sentencepiece_continues_a_prompt(tiny_bpe: Tokenizer, text: str, sizes: list[int]):
    """The first word keeps its space: the output goes on where the prompt ended."""
    ids = tiny_bpe.encode(text, add_special_tokens=False)
    assert "".join(stream(tiny_bpe, cut(ids, sizes))[0]) == (f" {text}" if text else "")


def test_sentencepiece_bytes_are_held_until_whole(tiny_bpe: Tokenizer):
    ids = [tiny_bpe.token_to_id(f"<0x{byte:02X}>") for byte in "é😀".encode()]
    assert None not in ids
    shown, _ = stream(tiny_bpe, [[i] for i in ids if i is not None])
    assert shown == ["", "é", "", "", "", "😀", ""]


# --- stops -------------------------------------------------------------------------------------------------------


@given(text=TEXTS, stop=st.sampled_from(["lo w", "world", "，", "\n", "👧", "2."]), sizes=SIZES)  # noqa: RUF001
def test_stop_strings(smollm2: Tokenizer, text: str, stop: str, sizes: list[int]):
    ids = smollm2.encode(text)
    shown, text_stream = stream(smollm2, cut(ids, sizes), stop=stop)
    before, found, _ = text.partition(stop)
    assert "".join(shown) == before
    assert text_stream.matched == (stop if found else None)
    if found:
        # The last token taken completes the stop: without it the stop is not there.
        assert stop in smollm2.decode(ids[: text_stream.num_tokens])
        assert stop not in smollm2.decode(ids[: text_stream.num_tokens - 1])
    kept, _ = stream(smollm2, cut(ids, sizes), stop=stop, no_stop_trim=True)
    assert "".join(kept) == before + found


def test_a_possible_start_of_a_stop_is_held_back(smollm2: Tokenizer):
    ids = smollm2.encode("one END two END.")
    shown, text_stream = stream(smollm2, cut(ids, [1]), stop=["END."])
    assert "".join(shown) == "one END two "
    assert text_stream.matched == "END."
    assert text_stream.push(smollm2.encode("more")) == ""  # after a match nothing comes
    assert text_stream.num_tokens == len(ids)
    assert "".join(stream(smollm2, cut(smollm2.encode("one EN"), [1]), stop=["END."])[0]) == "one EN"


def test_stop_regex(smollm2: Tokenizer):
    ids = smollm2.encode("Answer: 42 is it")
    shown, text_stream = stream(smollm2, cut(ids, [1]), stop_regex=[r"\d+ is"])
    assert "".join(shown) == "Answer: "
    assert text_stream.matched == "42 is"
    assert text_stream.num_tokens == len(ids) - 1


def test_special_tokens_are_hidden_or_shown(smollm2: Tokenizer):
    ids = smollm2.encode("a<|im_end|>b")
    assert "".join(stream(smollm2, [ids])[0]) == "ab"
    assert "".join(stream(smollm2, [ids], skip_special_tokens=False)[0]) == "a<|im_end|>b"


@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_can_be_a_stop_string(smollm2: Tokenizer, skip: bool):
    ids = smollm2.encode("ab<|im_end|>cd")
    shown, text_stream = stream(smollm2, cut(ids, [1]), stop=["<|im_end|>", "bc"], skip_special_tokens=skip)
    assert "".join(shown) == "ab"
    assert text_stream.matched == "<|im_end|>"
    assert text_stream.num_tokens == ids.index(2) + 1
