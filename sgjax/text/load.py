"""Tokenizers from checkpoints: Hugging Face folders, sentencepiece models, GGUF files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from sgjax.config import ConfigError
from sgjax.gguf_container import read_container
from sgjax.text import sentencepiece, vocabulary
from sgjax.text.tokenizer import Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(source: Path, *, chat_template: str | None = None, eos_token_ids: Iterable[int] = ()) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
      source: a folder in Hugging Face's layout, or a GGUF file.
      chat_template: path of a Jinja file that replaces the checkpoint's template.
      eos_token_ids: ids that end an answer, beside those that the checkpoint's own files name.

    Raises:
      ConfigError: nothing there that can be read; says what is missing.
    """
    source = Path(source)
    try:
        if source.is_dir():
            parts = _from_folder(source)
        elif source.is_file():
            parts = _from_gguf(source)
        else:
            raise ConfigError("tokenizer_path", f"{source} does not exist")
        if chat_template is not None:
            parts["chat_templates"] = {"default": _read_template(Path(chat_template))}
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("tokenizer_path", f"cannot read the tokenizer of {source}: {error}") from error
    parts["eos_token_ids"] = {*parts["eos_token_ids"], *eos_token_ids}
    return Tokenizer(**parts)


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise ConfigError("chat_template", f"{path} is not a file")
    return path.read_text(encoding="utf-8")


def _from_folder(folder: Path) -> dict[str, Any]:
    """What `Tokenizer` takes, from tokenizer.json and the files beside it."""
    config = _read_json(folder / "tokenizer_config.json")
    backend = _folder_backend(folder)
    special_tokens = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
    for _, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        backend.add_tokens([tokenizers.AddedToken(**_added_token_fields(token))])
    vocabulary.add_markup(backend, [t for t in special_tokens.values() if backend.token_to_id(t) is not None])
    if isinstance(config.get("add_bos_token"), bool) or isinstance(config.get("add_eos_token"), bool):
        # These win over tokenizer.json's own post-processor, as in transformers 5.
        vocabulary.surround(
            backend,
            special_tokens.get("bos_token") if config.get("add_bos_token") else None,
            special_tokens.get("eos_token") if config.get("add_eos_token") else None,
        )
    eos: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        ids = _read_json(folder / name).get("eos_token_id")
        eos |= set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
    return {
        "backend": backend,
        "special_tokens": special_tokens,
        "eos_token_ids": eos,
        "chat_templates": _folder_templates(folder, config),
    }


def _folder_backend(folder: Path) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError("tokenizer_path", f"{folder / 'tokenizer.json'} is damaged: {error}") from error
    if (folder / "tokenizer.model").is_file():
        return sentencepiece.read_sentencepiece(folder / "tokenizer.model")
    raise ConfigError("tokenizer_path", f"{folder} has neither tokenizer.json nor tokenizer.model")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a JSON object")
    return value


def _added_token_fields(token: Mapping[str, Any]) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: token[name] for name in names if name in token}


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by role; an entry is a string or an object with `content`. Earlier files win."""
    result: dict[str, str] = {}
    for config in configs:
        for role in _ROLES:
            token = config.get(role)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                result.setdefault(role, text)
    return result


def _folder_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: chat_template.jinja wins over what tokenizer_config.json holds (a string, or named ones)."""
    inline = config.get("chat_template") or {}
    if isinstance(inline, str):
        templates = {"default": inline}
    elif isinstance(inline, list):
        templates = {entry["name"]: entry["template"] for entry in inline}
    else:
        templates = dict(inline)
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _read_template(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_template(path)
    return templates


def _from_gguf(path: Path) -> dict[str, Any]:
    """What `Tokenizer` takes, from GGUF metadata. Flags and defaults are llama.cpp's."""
    metadata = read_container(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, adds_bos = _gguf_byte_level(metadata)
    elif kind == "llama":
        backend, adds_bos = _gguf_sentencepiece(metadata), True
    else:
        raise ConfigError(
            "tokenizer_path", f"{path}: no support for tokenizer.ggml.model {kind!r}, only gpt2 and llama"
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", ())
    vocabulary.add_markup(
        backend,
        [t for t, kind in zip(tokens, types, strict=False) if kind in sentencepiece.SPECIAL],
        [t for t, kind in zip(tokens, types, strict=False) if kind == sentencepiece.USER_DEFINED],
    )
    ids = {
        "bos_token": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token": metadata.get("tokenizer.ggml.eos_token_id"),
        "unk_token": metadata.get("tokenizer.ggml.unknown_token_id"),
        "pad_token": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    special_tokens = {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None}
    vocabulary.surround(
        backend,
        special_tokens.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", adds_bos) else None,
        special_tokens.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
    )
    ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    prefix = "tokenizer.chat_template"
    return {
        "backend": backend,
        "special_tokens": special_tokens,
        "eos_token_ids": {token_id for token_id in ends if token_id is not None},
        "chat_templates": {
            key.removeprefix(prefix).removeprefix(".") or "default": value
            for key, value in metadata.items()
            if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
        },
    }


def _gguf_byte_level(metadata: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, bool]:
    split = str(metadata.get("tokenizer.ggml.pre"))
    if split not in vocabulary.SPLITS:
        raise ConfigError(
            "tokenizer_path",
            f"no support for tokenizer.ggml.pre {split!r}, only {', '.join(sorted(vocabulary.SPLITS))}; "
            "give the model's own tokenizer folder with --tokenizer-path",
        )
    backend = vocabulary.byte_level_bpe(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"], split)
    return backend, split in ("llama-bpe", "llama3", "llama-v3", "tekken")


def _gguf_sentencepiece(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    types = metadata["tokenizer.ggml.token_type"]
    return vocabulary.sentencepiece_bpe(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.scores"],
        is_word=[kind == sentencepiece.NORMAL for kind in types],
        unk_id=metadata.get("tokenizer.ggml.unknown_token_id", 0),
        prefix_space=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )
