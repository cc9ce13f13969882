"""Kernels with measured sizes: `tuned/<device kind>.json`, written by `python -m benchmarks.kernels <op> --tune`.

A kernel that can be tuned has, in its module, a frozen dataclass `Tuning` whose fields all have defaults, and takes one
as `tuning=`. A device without a file, and a bucket that its file does not have, run with the defaults.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import jax

TUNED_FOLDER = Path(__file__).parent / "tuned"


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """What the best sizes of an attention kernel depend on.

    Attributes:
      dtype: of the cache.
      rows: of `q`: sequences of a decode step, tokens of a prefill. In a file, the most that the entry is meant for.
    """

    head_dim: int
    page_size: int
    group: int
    dtype: str
    rows: int

    @classmethod
    def of(cls, q: jax.Array | jax.ShapeDtypeStruct, k_cache: jax.Array | jax.ShapeDtypeStruct) -> Bucket:
        """The bucket of a call with q (rows, K, G, H) and a cache (K, N, page, H)."""
        return cls(q.shape[3], k_cache.shape[2], q.shape[2], str(k_cache.dtype), q.shape[0])


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Calls a kernel with the sizes that were measured for the call's bucket."""

    function: Callable[..., Any]
    entries: tuple[tuple[Bucket, Any], ...]

    @property
    def time_grows_with_table(self) -> bool:
        return getattr(self.function, "time_grows_with_table", False)

    @property
    def supports_cascade(self) -> bool:
        return getattr(self.function, "supports_cascade", False)

    def __call__(self, q: jax.Array, k_cache: jax.Array, *args: Any, **kwargs: Any) -> Any:
        tuning = self.choose(Bucket.of(q, k_cache))
        return self.function(q, k_cache, *args, **({} if tuning is None else {"tuning": tuning}), **kwargs)

    def choose(self, bucket: Bucket) -> Any:
        """Of the entries that differ in `rows` alone, the first that is large enough, else the largest; or None."""
        alike = {at.rows: tuning for at, tuning in self.entries if dataclasses.replace(at, rows=bucket.rows) == bucket}
        if not alike:
            return None
        return alike[min((rows for rows in alike if rows >= bucket.rows), default=max(alike))]


def tuned_path(device_kind: str) -> Path:
    """The file of `jax.Device.device_kind`: "NVIDIA H100 80GB HBM3" has nvidia_h100_80gb_hbm3.json."""
    name = "".join(character if character.isalnum() else "_" for character in device_kind.lower())
    return TUNED_FOLDER / f"{name}.json"


def with_tuning(op: str, function: Callable[..., Any], tuning_type: type, path: Path) -> Callable[..., Any]:
    """`function` with the sizes that the file at `path` has for `op`, if it exists and has some.

    Raises:
      ValueError: names the file, and the entry, that is not as `write_entries` writes it.
    """
    entries = []
    for number, entry in enumerate(read_ops(path).get(op, [])):
        try:
            entries.append((_make(Bucket, entry["bucket"]), _make(tuning_type, entry["tuning"])))
        except KeyError as error:
            raise ValueError(f"{path}: {op}[{number}] has no {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {op}[{number}]: {error}") from None
    return Tuned(function, tuple(entries)) if entries else function


def _make(kind: Any, fields: Any) -> Any:
    """An instance of a dataclass, once the fields' types are known to be right."""
    if not isinstance(fields, dict):
        raise TypeError(f"{fields!r} is no object")
    types = get_type_hints(kind)
    for name, value in fields.items():
        if name not in types:
            raise TypeError(f"{kind.__name__} has no {name!r}; it has {', '.join(types)}")
        if not isinstance(value, types[name]):
            raise TypeError(f"{name} is {value!r}, which is no {getattr(types[name], '__name__', types[name])}")
    return kind(**fields)


def read_ops(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's entries by op; none if there is no file.

    Raises:
      ValueError: names a file that is no such JSON.
    """
    if not path.is_file():
        return {}
    try:
        ops = json.loads(path.read_text(encoding="utf-8"))["ops"]
        if all(isinstance(entry, dict) for entries in ops.values() for entry in entries):
            return ops
        reason = "an entry is no object"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path}: not a file of tuned sizes ({reason})")


def write_entries(
    path: Path, about: Mapping[str, Any], op: str, entries: Iterable[tuple[Bucket, Any, Mapping[str, Any]]]
) -> None:
    """Replaces the op's entries of the same buckets, and keeps all others.

    Args:
      about: what they were measured on: device, versions.
      entries: bucket, tuning, and what was measured of it.
    """
    ops = read_ops(path)
    by_bucket = {tuple(entry["bucket"].values()): entry for entry in ops.get(op, [])}
    for bucket, tuning, measured in entries:
        fields = dataclasses.asdict(bucket)
        by_bucket[tuple(fields.values())] = {"bucket": fields, "tuning": dataclasses.asdict(tuning), **measured}
    ops[op] = [by_bucket[key] for key in sorted(by_bucket)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "ops": ops}, indent=1) + "\n", encoding="utf-8")
