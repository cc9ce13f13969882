"""Which implementation of each op a step uses: a frozen set of callables, chosen by a string."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax

from sgjax.kernels.native.build import unavailable
from sgjax.kernels.paged_decode.api import PagedDecode
from sgjax.kernels.paged_prefill.api import PagedPrefill
from sgjax.kernels.sampling_threshold.api import SamplingThreshold
from sgjax.kernels.tuning import Tuned, tuned_path, with_tuning
from sgjax.kernels.write_kv.api import WriteKV

_logger = logging.getLogger(__name__)

OP_NAMES = ("write_kv", "paged_decode", "paged_prefill", "sampling_threshold")
IMPL_NAMES = ("reference", "xla", "native", "mosaic")

# What "auto" tries, in order. XLA's scatter already writes the cache in place, so that is the first choice. Mosaic's
# sampling threshold is left to be asked for until a GPU has timed it (docs/adr/0010-what-xla-fuses-alone.md).
_AUTO: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "write_kv": ("xla",),
        "paged_decode": ("native", "xla"),
        "paged_prefill": ("native", "xla"),
        "sampling_threshold": ("xla",),
    },
    "gpu": {
        "write_kv": ("xla",),
        "paged_decode": ("mosaic", "xla"),
        "paged_prefill": ("mosaic", "xla"),
        "sampling_threshold": ("xla",),
    },
}


@dataclasses.dataclass(frozen=True)
class Ops:
    """One callable per op; hashable, so that it can be a static argument of a jitted step.

    Two `Ops` are equal when they hold the same functions. Contracts: `sgjax/kernels/<op>/api.py`.
    """

    write_kv: WriteKV
    paged_decode: PagedDecode
    paged_prefill: PagedPrefill
    sampling_threshold: SamplingThreshold

    @property
    def time_grows_with_table(self) -> bool:
        """Whether decoding takes longer with a wider page table, used or not: narrow steps are then worth compiling."""
        return getattr(self.paged_decode, "time_grows_with_table", False)

    @property
    def supports_cascade(self) -> bool:
        """Whether attention over parts of a row can be joined. A kernel says so; where places matter it cannot."""
        return all(getattr(op, "supports_cascade", False) for op in (self.paged_decode, self.paged_prefill))

    @property
    def identity(self) -> str:
        """What tells these ops from others, in every run: the repr of a function would hold its address."""
        return ", ".join(_identity(getattr(self, op)) for op in OP_NAMES)

    def replace(self, **ops: Callable[..., Any]) -> Ops:
        """A copy with some ops exchanged. `Ops.replace(paged_decode=my_kernel)` retraces a jitted step once."""
        for name in ops:
            _check_op(name)
        return dataclasses.replace(self, **ops)


Choices = str | Mapping[str, str | Callable[..., Any]] | Ops
"""Implementations by op, as text or as a mapping, in which functions may stand too: see `resolve`."""


def resolve(choices: Choices = "", platform: str | None = None, device_kind: str | None = None) -> Ops:
    """The ops that `choices` names; `resolve()` gives those of an engine on this machine.

    Args:
      choices: comma-separated `op=implementation`, or a mapping of ops to implementations; `*` stands for every op not
        named. An implementation is "reference", "xla", "native", "mosaic", "auto" or `path/to/file.py:function`; in a
        mapping it may be the function itself. Ops without a choice are "auto". An `Ops` is returned as it is.
      platform: `jax.Device.platform` ("cpu", "gpu"), which "auto" depends on; "cuda" means "gpu". None: that of
        jax's default device, and its kind.
      device_kind: `jax.Device.device_kind`, for whose `sgjax/kernels/tuned` file "mosaic" looks; None takes defaults.

    An explicit choice that does not support a case raises `NotImplementedError` when it is traced. "auto" goes on to
    its next candidate then, and logs that once.

    Raises:
      ValueError: an op, an implementation or a platform that does not exist, an op chosen twice, or a damaged file of
        tuned sizes.
    """
    if isinstance(choices, Ops):
        return choices
    if platform is None:
        device = jax.devices()[0]
        return resolve(choices, device.platform, device.device_kind)
    chosen = _parse(choices) if isinstance(choices, str) else dict(choices)
    default = chosen.pop("*", "auto")
    for op in chosen:
        _check_op(op)
    return Ops(
        **{op: cast(Any, _implementation(op, chosen.get(op, default), platform, device_kind)) for op in OP_NAMES}
    )


def describe(choices: Choices) -> str:
    """`choices` as text, for people: functions by their names."""
    if isinstance(choices, str):
        return choices
    if isinstance(choices, Ops):
        choices = {op: getattr(choices, op) for op in OP_NAMES}
    texts = {op: impl if isinstance(impl, str) else _name(impl) for op, impl in choices.items()}
    return ",".join(f"{op}={text}" for op, text in texts.items())


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return f"{function.__module__}.{name}"


def _identity(function: Callable[..., Any]) -> str:
    match function:
        case FirstSupported(functions=functions):
            return " or ".join(map(_identity, functions))
        case Tuned(function=function, entries=entries):
            return f"{_identity(function)} with {entries}"
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _parse(choices: str) -> dict[str, str | Callable[..., Any]]:
    chosen: dict[str, str | Callable[..., Any]] = {}
    for choice in filter(None, (part.strip() for part in choices.split(","))):
        op, equals, impl = (part.strip() for part in choice.partition("="))
        if not equals or not impl:
            raise ValueError(f"kernel choice {choice!r} must be op=implementation")
        if op in chosen:
            raise ValueError(f"kernel {op!r} is chosen twice in {choices!r}")
        chosen[op] = impl
    return chosen


def _check_op(op: str) -> None:
    if op not in OP_NAMES:
        raise ValueError(f"unknown kernel {op!r}; there are {', '.join(OP_NAMES)}")


def _implementation(
    op: str, impl: str | Callable[..., Any], platform: str, device_kind: str | None
) -> Callable[..., Any]:
    if callable(impl):
        return impl
    if not isinstance(impl, str):
        raise ValueError(f"{op}: an implementation is a name or a function, not {impl!r}")
    if impl in IMPL_NAMES:
        if importlib.util.find_spec(f"sgjax.kernels.{op}.{impl}") is None:
            raise ValueError(f"{op} has no implementation {impl!r}")
        module = importlib.import_module(f"sgjax.kernels.{op}.{impl}")
        function = getattr(module, op)
        if device_kind is None or not hasattr(module, "Tuning"):
            return function
        return with_tuning(op, function, module.Tuning, tuned_path(device_kind))
    if impl == "auto":
        platform = "gpu" if platform == "cuda" else platform
        if platform not in _AUTO:
            raise ValueError(f"no kernels for platform {platform!r}; there are {', '.join(_AUTO)}")
        candidates = tuple(name for name in _AUTO[platform][op] if name != "native" or _has_native())
        functions = tuple(_implementation(op, name, platform, device_kind) for name in candidates)
        return functions[0] if len(functions) == 1 else FirstSupported(op, candidates, functions)
    if ".py:" in impl:
        return _from_file(impl)
    raise ValueError(
        f"unknown implementation {impl!r} of {op}; there are {', '.join(IMPL_NAMES)}, auto and path/to/file.py:function"
    )


def _has_native() -> bool:
    """Whether this machine can build the C++ kernels: settled here, so that who resolves knows what will run."""
    reason = unavailable()
    if reason is not None:
        _say_once(f"no native kernels: {reason}; using xla, which is slower")
    return reason is None


def _from_file(choice: str) -> Callable[..., Any]:
    path, _, name = choice.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"kernel file {path!r} does not exist")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r}")
    return function


@dataclasses.dataclass(frozen=True)
class FirstSupported:
    """Calls the first function that supports the case; what does not raises `NotImplementedError` when traced."""

    op: str
    names: tuple[str, ...]
    functions: tuple[Callable[..., Any], ...]

    @property
    def time_grows_with_table(self) -> bool:
        return getattr(self.functions[0], "time_grows_with_table", False)

    @property
    def supports_cascade(self) -> bool:
        return all(getattr(function, "supports_cascade", False) for function in self.functions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        *first, last = zip(self.names, self.functions, strict=True)
        for name, function in first:
            try:
                return function(*args, **kwargs)
            except NotImplementedError as error:
                _say_once(f"{self.op}: {name} does not support this case ({error}); trying the next implementation")
        return last[1](*args, **kwargs)


@functools.cache
def _say_once(message: str) -> None:
    _logger.warning(message)
