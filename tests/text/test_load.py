"""Loading tokenizers from folders, sentencepiece models and GGUF files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sgjax.config import ConfigError
from sgjax.text import Tokenizer, load_tokenizer
from sgjax.text.sentencepiece import read_sentencepiece
from sgjax.text.vocabulary import SPLITS, byte_level_bpe

DATA = Path(__file__).parent / "data"
SENTENCEPIECE_CASES = json.loads((DATA / "tiny_bpe.json").read_text(encoding="utf-8"))
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


# --- sentencepiece -----------------------------------------------------------------------------------------------


def test_sentencepiece_ids_and_texts(tiny_bpe: Tokenizer):
    for case in SENTENCEPIECE_CASES:
        assert tiny_bpe.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        assert tiny_bpe.decode(case["ids"]) == case["decoded"]


def test_sentencepiece_markup_is_matched_whole(tiny_bpe: Tokenizer):
    assert tiny_bpe.encode("the") == [1, *tiny_bpe.encode("the", add_special_tokens=False)]
    assert tiny_bpe.encode("</s>", add_special_tokens=False) == [2]
    assert tiny_bpe.eos_token_ids == (2,)
    assert tiny_bpe.special_token_ids == {0, 1, 2}
    assert tiny_bpe.decode(tiny_bpe.encode("the [TOOL]</s>")) == "the [TOOL]"


def test_sentencepiece_from_gguf_is_the_same(tiny_bpe: Tokenizer, tmp_path: Path):
    backend = read_sentencepiece(DATA / "tiny_bpe.model")
    size = backend.get_vocab_size()
    pieces = [backend.id_to_token(i) for i in range(size)]
    # The scores of a BPE model are minus its merge order, so the order says as much.
    types = [2, 3, 3, 4, *[6] * 256, *[1] * (size - 260)]
    path = write_gguf(
        tmp_path,
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [float(-i) for i in range(size)],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        },
    )
    loaded = load_tokenizer(path)
    for case in SENTENCEPIECE_CASES:
        assert loaded.encode(case["text"]) == tiny_bpe.encode(case["text"])
        assert loaded.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02 nonsense", b"\x0a\xff\xff\x03abc"])
def test_damaged_sentencepiece_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.model is not a"):
        load_tokenizer(tmp_path)


def test_unigram_sentencepiece_says_what_to_do(tmp_path: Path):
    piece = b"\x0a\x03" + b"\x0a\x01a"  # pieces { piece: "a" }, and a trainer spec of the default kind
    (tmp_path / "tokenizer.model").write_bytes(piece)
    with pytest.raises(ConfigError, match="save_pretrained"):
        load_tokenizer(tmp_path)


# --- Hugging Face folders ----------------------------------------------------------------------------------------


def write_folder(folder: Path, **files: Any) -> Path:
    """A byte-level tokenizer with <s>, </s> and <|end|> after the 256 bytes; `files` by stem."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(BYTES)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.enable_truncation(4)
    backend.save(str(folder / "tokenizer.json"))
    for stem, value in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_folder(tmp_path: Path):
    write_folder(
        tmp_path,
        tokenizer_config={
            "bos_token": {"content": "<s>"},
            "eos_token": "</s>",
            "add_bos_token": True,
            "added_tokens_decoder": {"258": {"content": "<|end|>", "special": True, "normalized": False}},
            "chat_template": "in the config",
        },
        generation_config={"eos_token_id": [257, 258]},
        config={"eos_token_id": 257},
    )
    loaded = load_tokenizer(tmp_path, eos_token_ids=[7])
    assert loaded.eos_token_ids == (7, 257, 258)
    assert loaded.bos_token_id == 256
    assert loaded.vocab_size == 259
    assert loaded.encode("abcdefgh")[0] == 256
    assert loaded.decode(loaded.encode("abcdefgh<|end|>")) == "abcdefgh"  # not truncated to 4
    assert loaded.chat_template == "in the config"


def test_special_tokens_map_fills_in(tmp_path: Path):
    write_folder(tmp_path, special_tokens_map={"eos_token": "</s>"})
    assert load_tokenizer(tmp_path).eos_token_ids == (257,)
    assert load_tokenizer(tmp_path).encode("a") == [BYTES.index("a")]


def test_templates_of_a_folder(tmp_path: Path):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write_folder(tmp_path, tokenizer_config={"chat_template": named})
    user = [{"role": "user", "content": "x"}]
    loaded = load_tokenizer(tmp_path)
    assert loaded.apply_chat_template(user) == "a"
    assert loaded.apply_chat_template(user, tools=[{"name": "f"}]) == "b"

    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(tmp_path).apply_chat_template(user) == "from the file"

    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
    mine = load_tokenizer(tmp_path, chat_template=str(tmp_path / "mine.jinja"))
    assert mine.apply_chat_template(user, tools=[{"name": "f"}]) == "x!"


def test_no_template_is_said(tmp_path: Path):
    from sgjax.types import RequestError

    with pytest.raises(RequestError, match="no chat template"):
        load_tokenizer(write_folder(tmp_path)).encode_chat([{"role": "user", "content": "x"}])


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="chat_template") as error:
        load_tokenizer(tmp_path, chat_template=str(tmp_path / "none.jinja"))
    assert error.value.field == "chat_template"


# --- GGUF --------------------------------------------------------------------------------------------------------


def write_gguf(folder: Path, fields: dict[str, Any]) -> Path:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*BYTES, "ab", "abc", "<|s|>", "<|e|>", "<think>"],
        "tokenizer.ggml.token_type": [1] * 258 + [3, 3, 4],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.eot_token_id": 257,
    }
    return {**fields, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}


def test_byte_level_gguf(tmp_path: Path):
    loaded = load_tokenizer(write_gguf(tmp_path, byte_level_fields()))
    assert loaded.encode("ab") == [258, 256]  # llama-bpe adds BOS unless told otherwise
    assert loaded.encode("abc", add_special_tokens=False) == [257]  # and takes whole pieces without their merges
    assert loaded.encode("<think>ab<|e|>", add_special_tokens=False) == [260, 256, 259]
    assert loaded.eos_token_ids == (257, 259)
    assert loaded.decode([258, 260, 256, 259]) == "<think>ab"


def test_byte_level_gguf_flags(tmp_path: Path):
    fields = byte_level_fields(pre="qwen2", add_bos_token=False, add_eos_token=True)
    fields["tokenizer.chat_template"] = "a"
    fields["tokenizer.chat_template.tool_use"] = "b"
    loaded = load_tokenizer(write_gguf(tmp_path, fields))
    assert loaded.encode("abc") == [256, BYTES.index("c"), 259]
    assert loaded.encode("e\u0301") == loaded.encode("é")  # Qwen2 normalises
    assert loaded.apply_chat_template([{"role": "user", "content": ""}], tools=[{"name": "f"}]) == "b"


def test_unknown_kinds_of_gguf_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.pre 'new'.*--tokenizer-path"):
        load_tokenizer(write_gguf(tmp_path, byte_level_fields(pre="new")))
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.model 't5'"):
        load_tokenizer(write_gguf(tmp_path, byte_level_fields(model="t5")))


def test_damaged_gguf_is_refused(tmp_path: Path):
    whole = write_gguf(tmp_path, byte_level_fields()).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for content in (b"", b"nonsense", whole[:200], whole[:4] + struct.pack("<I", 1) + whole[8:]):
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=r"damaged\.gguf"):
            load_tokenizer(damaged)


# Pieces that the patterns must make, from the published tokenizers' behaviour.
@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("gpt-2", "I've 1234  a\n\nB!", ["I", "'ve", " 1234", " ", " a", "\n", "\n", "B", "!"]),
        ("smollm", "I've 1234  a!", ["I", "'ve", " ", "1", "2", "3", "4", " ", " a", "!"]),
        ("smollm", "x  7", ["x", "  ", "7"]),
        ("llama-bpe", "I'VE 12345  a\n\nB!?\n", ["I", "'VE", " ", "123", "45", " ", " a", "\n\n", "B", "!?\n"]),
        ("qwen2", "I'VE 123 (a)\r\n x", ["I", "'VE", " ", "1", "2", "3", " (", "a", ")\r\n", " x"]),
        ("tekken", "HelloWorld XMLFile 12/\n", ["Hello", "World", " XMLFile", " ", "1", "2", "/\n"]),
    ],
)
def test_splits(split: str, text: str, pieces: list[str]):
    backend = byte_level_bpe(BYTES, [], split)
    assert backend.pre_tokenizer is not None
    cut = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == pieces


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_every_split_keeps_the_text(split: str):
    backend = byte_level_bpe(BYTES, [], split)
    text = "Ünï 123 don't\n\n  x\t👋🏽 你好\r\n…"
    assert backend.decode(backend.encode(text).ids) == text
