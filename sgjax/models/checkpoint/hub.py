"""From what a user names to a path on this machine: a folder, a file, the embedded model or a hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sgjax.config import hub_offline
from sgjax.models.checkpoint.base import CheckpointError
from sgjax.models.checkpoint.embedded import Progress, fetch_embedded

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?")
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
# Copies of the weights that some repositories hold besides, in other formats or under other names.
_UNUSED_FILES = ("original/*", "consolidated*", "onnx/*", "*/*.safetensors")
_ACCEPTED = (
    "a folder in Hugging Face's layout, a folder written by 'sgjax models convert', a .gguf file, 'embedded', a hub id "
    "'organisation/name' (with '@revision' for one) or a file of one, 'organisation/name/file.gguf'"
)


def resolve(model_path: str, *, with_weights: bool = True, progress: Progress | None = None) -> Path:
    """The folder or GGUF file on this machine that `model_path` means, downloaded if need be.

    Args:
      with_weights: False leaves the weights of a hub id out.
      progress: called while the embedded model is fetched. Hub downloads show their own bar.

    Raises:
      CheckpointError: nothing is there, or it could not be downloaded; the message says what was tried.
    """
    if model_path == EMBEDDED:
        return fetch_embedded(progress)
    path = Path(model_path).expanduser()
    if model_path and (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return path
    if path.is_file():
        raise CheckpointError(f"{model_path}: a file, but not a .gguf one; accepted are {_ACCEPTED}")
    match = _HUB_ID.fullmatch(model_path)
    if match is None:
        raise CheckpointError(f"{model_path}: no such folder or file, nor a hub id; accepted are {_ACCEPTED}")
    small = _SMALL_FILES if match["file"] is None else ()
    weights = (match["file"] or "*.safetensors",) if with_weights or match["file"] else ()
    folder = _snapshot(match["repo"], match["revision"], [*small, *weights])
    return folder / match["file"] if match["file"] else folder


def _snapshot(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    import huggingface_hub  # half a second, and only hub ids need it
    from huggingface_hub import constants

    offline = hub_offline()
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_UNUSED_FILES),
            local_files_only=offline,
        )
    except Exception as error:  # the hub's errors, HTTP errors, operating system errors: one answer for all
        asked = "the hub was not asked, because HF_HUB_OFFLINE is set" if offline else "asking the hub failed"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{repo}: no such folder here, not in the hub cache {constants.HF_HUB_CACHE}, and {asked}: {reason}"
        ) from error
    return Path(folder)
