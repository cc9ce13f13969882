"""From a checkpoint to parameters on devices, one tensor at a time."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from sgjax.config import EngineConfig
from sgjax.models.checkpoint import OrbaxFolder, open_checkpoint
from sgjax.models.checkpoint.base import Checkpoint, CheckpointError
from sgjax.models.config import ModelConfig, token_ids
from sgjax.models.registry import build, read_config
from sgjax.models.spec import Graph, Params, ParamSpec, declare

Progress = Callable[[int, int], None]
"""Called with (bytes placed, bytes in all) of the parameters in their own dtype."""

# Buffers that older checkpoints saved and every implementation computes.
_IGNORED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to run with `sgjax.models.forward`.

    Attributes:
      params: arrays on the devices, to be passed through the jitted step.
      generation: the content of `generation_config.json`.
      tokenizer_source: the folder, or the GGUF file, that holds the tokenizer.
    """

    config: ModelConfig
    graphdef: Graph
    params: Params
    generation: dict[str, Any]
    tokenizer_source: Path

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a sequence, of the generation config and the model's."""
        ids = (*token_ids(self.generation.get("eos_token_id")), *self.config.eos_token_ids)
        return tuple(dict.fromkeys(ids))


def load_model(config: EngineConfig, mesh: Mesh | None = None, progress: Progress | None = None) -> LoadedModel:
    """Loads, or draws at random, the model that `config` names.

    Args:
      mesh: a mesh with an axis "tensor" to shard over; None puts everything on the default device.

    Raises:
      ModelError: an architecture, or a feature of one, that is not supported.
      CheckpointError: tensors are missing, extra or wrongly shaped, or a file is unreadable.
    """
    checkpoint = open_checkpoint(config.model_path, config.load_format)
    model_config = read_config(checkpoint.config, config.dtype)
    graphdef, specs = declare(build(model_config))
    if config.load_format == "dummy":
        params = draw_params(specs, config.random_seed, mesh)
    elif isinstance(checkpoint, OrbaxFolder):
        params = restore_params(specs, checkpoint, mesh, progress)
    else:
        params = load_params(specs, checkpoint, mesh, progress)
    return LoadedModel(model_config, graphdef, params, dict(checkpoint.generation_config), checkpoint.tokenizer_source)


def load_params(
    specs: Params, checkpoint: Checkpoint, mesh: Mesh | None = None, progress: Progress | None = None
) -> Params:
    """Reads, folds, casts and places every parameter. The host holds one of them at a time.

    Raises:
      CheckpointError: before anything is read, when the checkpoint's tensors are not those declared.
    """
    check_tensors(specs, checkpoint)
    total = sum(spec.nbytes for spec in jax.tree.leaves(specs))
    done = 0

    def load(spec: ParamSpec) -> jax.Array:
        nonlocal done
        # Waiting keeps copies in flight, and with them host memory, to one parameter.
        array = jax.block_until_ready(jax.device_put(fold(spec, checkpoint), _sharding(spec, mesh)))
        done += spec.nbytes
        if progress:
            progress(done, total)
        return array

    return jax.tree.map(load, specs)


def restore_params(
    specs: Params, checkpoint: OrbaxFolder, mesh: Mesh | None = None, progress: Progress | None = None
) -> Params:
    """The parameters of an Orbax checkpoint, which holds them folded: every device reads its own shards.

    Raises:
      CheckpointError: the checkpoint's parameters are not those declared, or cannot be read.
    """
    default = SingleDeviceSharding(jax.devices()[0])

    def abstract(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=_sharding(spec, mesh) or default)

    params = checkpoint.restore(jax.tree.map(abstract, specs))
    if progress:
        total = sum(spec.nbytes for spec in jax.tree.leaves(specs))
        progress(total, total)
    return params


def fold(spec: ParamSpec, checkpoint: Checkpoint) -> np.ndarray:
    """One parameter on the host, put together from its tensors and cast. Never a view of a file, which may change."""
    folded = np.empty(spec.shape, jnp.dtype(spec.dtype))
    for part in spec.parts:
        folded[part.place] = checkpoint.read(part.name).reshape(part.shape)
    return folded


def check_tensors(specs: Params, checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` unless the checkpoint holds exactly the declared tensors, in the declared shapes."""
    declared = {part.name: part.checkpoint_shape for spec in jax.tree.leaves(specs) for part in spec.parts}
    for name, shape in declared.items():
        if name not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.tokenizer_source}: tensor {name} {shape} is missing")
        info = checkpoint.tensors[name]
        if tuple(info.shape) != shape:
            raise CheckpointError(f"{info.file}: tensor {name} has shape {tuple(info.shape)}, expected {shape}")
    for name, info in checkpoint.tensors.items():
        # A tied checkpoint may still store the head; transformers ties, and drops it, too.
        if name not in declared and name != "lm_head.weight" and not _IGNORED.search(name):
            raise CheckpointError(f"{info.file}: tensor {name} {tuple(info.shape)} has no place in this architecture")


def draw_params(specs: Params, seed: int, mesh: Mesh | None = None) -> Params:
    """Random parameters, made on the devices where they stay. The same for a seed whatever the mesh."""
    leaves, tree = jax.tree.flatten(specs)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [
            _draw(key, spec.shape, spec.dtype, spec.deviation, _sharding(spec, mesh))
            for key, spec in zip(keys, leaves, strict=True)
        ]
    )


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "deviation", "sharding"))
def _draw(
    key: jax.Array, shape: tuple[int, ...], dtype: str, deviation: float | None, sharding: Sharding | None
) -> jax.Array:
    """Ones where `deviation` is None."""
    array = jnp.ones(shape, dtype) if deviation is None else jax.random.normal(key, shape, dtype) * deviation
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def _sharding(spec: ParamSpec, mesh: Mesh | None) -> Sharding | None:
    return None if mesh is None else spec.sharding(mesh)
