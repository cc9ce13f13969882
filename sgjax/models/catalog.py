"""What `sgjax models list`, `pull` and `inspect` show: checkpoints on this machine, and what is in one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgjax.models.checkpoint import OrbaxFolder, open_checkpoint, resolve
from sgjax.models.checkpoint.base import Checkpoint, CheckpointError, TensorInfo
from sgjax.models.checkpoint.embedded import Progress, embedded_path, is_fetched
from sgjax.models.checkpoint.hub import EMBEDDED
from sgjax.models.errors import ModelError
from sgjax.models.loader import check_tensors
from sgjax.models.registry import build, read_config
from sgjax.models.spec import declare


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """What a checkpoint holds.

    Attributes:
      path: the folder or file. format: "safetensors", "gguf" or "orbax".
      num_params: numbers in all tensors. size_bytes: what they take as stored.
      dtypes: how many tensors, and numbers in them, per stored dtype: {"Q4_1": (210, 106168320)}.
      tokenizer: the file that holds it; None when there is none.
      problem: why sgjax cannot serve it; None when it can.
    """

    path: Path
    format: str
    architecture: str
    num_params: int
    size_bytes: int
    context_length: int | None
    dtypes: Mapping[str, tuple[int, int]]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer: Path | None
    problem: str | None


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A checkpoint that can be served without a network, by the name to serve it with."""

    model_path: str
    path: Path
    size_bytes: int


def inspect(model_path: str) -> ModelSummary:
    """Opens a checkpoint, downloading it if need be, and describes it. Reads no weights.

    Raises:
      CheckpointError: there is no such checkpoint, or its files are damaged.
    """
    checkpoint = open_checkpoint(model_path)
    config = checkpoint.config
    source = checkpoint.tokenizer_source
    is_orbax = isinstance(checkpoint, OrbaxFolder)
    folder = source.parent if is_orbax and source.is_file() else source
    return ModelSummary(
        path=folder,
        format="orbax" if is_orbax else "gguf" if source.is_file() else "safetensors",
        architecture=", ".join(config.get("architectures") or ()) or str(config.get("model_type")),
        num_params=sum(math.prod(info.shape) for info in checkpoint.tensors.values()),
        size_bytes=checkpoint.nbytes,
        context_length=config.get("max_position_embeddings"),
        dtypes=_count_dtypes(checkpoint.tensors),
        config=config,
        tensors=checkpoint.tensors,
        tokenizer=_tokenizer_file(source),
        problem=_problem(checkpoint),
    )


def list_models() -> list[LocalModel]:
    """The embedded model when it has been fetched, and the models of the hub cache that hold weights sgjax reads."""
    models = [LocalModel(EMBEDDED, embedded_path(), embedded_path().stat().st_size)] if is_fetched() else []
    return models + _hub_models()


def pull(model_path: str, progress: Progress | None = None) -> Path:
    """Downloads a checkpoint, unless it is here, and checks that its files are whole.

    Raises:
      CheckpointError: it cannot be had, or what came is damaged.
    """
    path = resolve(model_path, progress=progress)
    open_checkpoint(str(path))
    return path


def _count_dtypes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for info in tensors.values():
        num_tensors, num_params = counts.get(info.dtype, (0, 0))
        counts[info.dtype] = (num_tensors + 1, num_params + math.prod(info.shape))
    return counts


def _tokenizer_file(source: Path) -> Path | None:
    if source.is_file():
        return source
    return next((source / name for name in ("tokenizer.json", "tokenizer.model") if (source / name).is_file()), None)


def _problem(checkpoint: Checkpoint | OrbaxFolder) -> str | None:
    try:
        _, specs = declare(build(read_config(checkpoint.config)))
        if not isinstance(checkpoint, OrbaxFolder):
            check_tensors(specs, checkpoint)
    except (ModelError, CheckpointError) as error:
        return str(error)
    return None


def _hub_models() -> list[LocalModel]:
    import huggingface_hub  # half a second
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    models = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in repo.revisions if repo.repo_type == "model" else ():
            suffix = "" if "main" in revision.refs else f"@{revision.commit_hash}"
            names = {file.file_name for file in revision.files}
            if "config.json" in names and any(name.endswith(".safetensors") for name in names):
                models.append(LocalModel(repo.repo_id + suffix, revision.snapshot_path, revision.size_on_disk))
            for file in revision.files:
                if file.file_name.endswith(".gguf"):
                    name = file.file_path.relative_to(revision.snapshot_path).as_posix()
                    models.append(LocalModel(f"{repo.repo_id}/{name}{suffix}", file.file_path, file.size_on_disk))
    return models
