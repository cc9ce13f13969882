"""One declaration per parameter. From it come shapes, shardings, the loader and dummy weights.

A model's constructor fills its modules with declarations (`param`), not arrays. `declare` splits such a model into a
static graph and a tree of `ParamSpec`; every other tree (abstract, sharded, loaded) is a map over that one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sgjax.models.config import ModelConfig
from sgjax.models.errors import ModelError

Axis = str | int
"""A name of `ModelConfig.axis_sizes`, which gives size and mesh axis; or a plain size, never sharded."""

Graph = nnx.GraphDef
Params = Any
"""Nested dicts of arrays: what crosses the boundary of a jitted step."""

MESH_AXES = {"kv_heads": "tensor", "feed_forward": "tensor", "vocab": "tensor"}
"""Which mesh axis an axis is sharded over. With these a layer needs two all-reduces and no other communication."""


class Concat(NamedTuple):
    """Checkpoint tensors laid one after the other along `axis`, with these sizes there."""

    axis: int
    sizes: tuple[Axis, ...]


class Part(NamedTuple):
    """One checkpoint tensor's place in a parameter: `param[place] = tensor.reshape(shape)`."""

    name: str
    checkpoint_shape: tuple[int, ...]
    shape: tuple[int, ...]
    place: tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """A declared parameter.

    Attributes:
      axes: all axes, outputs first, and their sizes, `shape`.
      parts: the checkpoint tensors that make it up.
      deviation: of dummy weights, drawn from a normal distribution around zero; None makes them ones.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]
    deviation: float | None

    @property
    def abstract(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.abstract.dtype.itemsize

    def sharding(self, mesh: Mesh) -> NamedSharding:
        """How the parameter lies on a mesh with an axis "tensor".

        Raises:
          ModelError: a sharded axis is not divisible by the mesh's.
        """
        mesh_axes = [MESH_AXES.get(axis) if isinstance(axis, str) else None for axis in self.axes]
        for axis, size, mesh_axis in zip(self.axes, self.shape, mesh_axes, strict=True):
            if mesh_axis is not None and size % mesh.shape[mesh_axis]:
                raise ModelError(f"{axis} = {size} cannot be divided over {mesh.shape[mesh_axis]} devices")
        return NamedSharding(mesh, PartitionSpec(*mesh_axes))


def param(
    cfg: ModelConfig,
    out: tuple[Axis, ...],
    in_: tuple[Axis, ...] = (),
    *,
    hf: str | tuple[str, ...],
    fold: Concat | None = None,
    ones: bool = False,
) -> nnx.Param:
    """Declares a parameter of shape (*out, *in_), read from the checkpoint's (out, in) matrix or (out,) vector.

    Args:
      hf: the Hugging Face name of its tensor, or of the tensors that `fold` puts together.
      ones: dummy weights are ones (norms). Else they are normal with variance 1 / inputs, which keeps activations
        at unit scale; biases are small.
    """
    shape = tuple(_size(cfg, axis) for axis in (*out, *in_))
    names = (hf,) if isinstance(hf, str) else hf
    fold = fold or Concat(0, (out[0],))
    sizes = [_size(cfg, axis) for axis in fold.sizes]
    assert sum(sizes) == shape[fold.axis], f"{names} do not fill {shape}"
    parts = tuple(_parts(names, sizes, shape, fold.axis, len(out)))
    inputs = math.prod(shape[len(out) :]) if in_ else 1000
    return nnx.Param(ParamSpec((*out, *in_), shape, cfg.dtype, parts, None if ones else inputs**-0.5))


def _size(cfg: ModelConfig, axis: Axis) -> int:
    return axis if isinstance(axis, int) else cfg.axis_sizes[axis]


def _parts(names: tuple[str, ...], sizes: list[int], shape: tuple[int, ...], axis: int, num_out: int) -> Iterator[Part]:
    start = 0
    for name, size in zip(names, sizes, strict=True):
        part_shape = (*shape[:axis], size, *shape[axis + 1 :])
        rows, columns = part_shape[:num_out], part_shape[num_out:]
        checkpoint_shape = (math.prod(rows), math.prod(columns)) if columns else (math.prod(rows),)
        place = (*(slice(None),) * axis, slice(start, start + size))
        yield Part(name, checkpoint_shape, part_shape, place)
        start += size


def declare(model: nnx.Module) -> tuple[Graph, Params]:
    """Splits a model full of declarations into its static graph and a tree of `ParamSpec`."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)
