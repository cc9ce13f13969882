"""Fast tokenizers built from bare vocabularies: byte-level BPE and sentencepiece BPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_WORD_MARK = "▁"  # U+2581, sentencepiece's space

# How a byte-level vocabulary's training text was cut, one regular expression after another; from each family's own
# tokenizer.json. Text between matches is a piece too.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "olmo", "phi-2"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
}
# Vocabularies whose pieces are looked up whole before any merge.
_WHOLE_PIECES = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
_NFC = frozenset({"qwen2", "deepseek-r1-qwen"})


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], split: str) -> Tokenizer:
    """Byte-level BPE. `split` is a key of `SPLITS`; merges are "left right", the first comes first."""
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=split in _WHOLE_PIECES))
    if split in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[split]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_bpe(
    pieces: Sequence[str], scores: Sequence[float], *, is_word: Sequence[bool], unk_id: int, prefix_space: bool
) -> Tokenizer:
    """Llama 2's kind: BPE whose merge order is the pieces' scores, with single bytes for unknown characters.

    Args:
      is_word: whether a piece is ordinary text that merging may produce (not a byte, not control).
    """
    vocab = {piece: piece_id for piece_id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(vocab, scores, is_word),
            unk_token=pieces[unk_id],
            fuse_unk=True,
            byte_fallback="<0x00>" in vocab,
        )
    )
    spaces = normalizers.Replace(" ", _WORD_MARK)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_WORD_MARK), spaces]) if prefix_space else spaces
    steps = [decoders.Replace(_WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_by_score(
    vocab: Mapping[str, int], scores: Sequence[float], is_word: Sequence[bool]
) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best third first (as transformers' `generate_merges`)."""
    merges = []
    for piece, piece_id in vocab.items():
        if not is_word[piece_id]:
            continue
        for i in range(1, len(piece)):
            left, right = vocab.get(piece[:i]), vocab.get(piece[i:])
            if left is not None and right is not None and is_word[left] and is_word[right]:
                merges.append((-scores[piece_id], -i, left, piece[:i], piece[i:]))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def add_markup(tokenizer: Tokenizer, special: Sequence[str], plain: Sequence[str] = ()) -> None:
    """Marks tokens of the vocabulary that are matched whole in a text; `special` ones are hidden when decoding."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def surround(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Lets `add_special_tokens` put `bos` before and `eos` after a text."""
    parts = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    # Token names may hold colons or dollars, so they are given as ids under plain names.
    names = {token: f"mark{i}" for i, token in enumerate(dict.fromkeys(t for t in (bos, eos) if t))}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[names.get(part, part) for part in parts],
        special_tokens=[
            {"id": name, "ids": [tokenizer.token_to_id(token)], "tokens": [token]} for token, name in names.items()
        ],
    )
