"""Command-line flags made from the config dataclasses, so that a setting is defined in one place."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from sgjax.config import ConfigError
from sgjax.types import RequestError


def add_flags(parser: argparse.ArgumentParser, config_class: type, title: str, helps: Mapping[str, str] | None = None):
    """Adds a flag for each field of a dataclass: `page_size` becomes `--page-size`.

    Args:
      helps: field name to help text, for a class whose fields have none; then only the named fields get a flag.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        help_text = helps.get(field.name) if helps is not None else field.metadata["help"]
        if help_text is None:
            continue
        options = _value_options(hints[field.name])
        if "default" not in help_text and not (field.default is None or field.default is False or field.default == ()):
            help_text += f" (default: {field.default})"
        group.add_argument(
            _flag(field.name),
            *field.metadata.get("aliases", ()),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=help_text.replace("%", "%%"),
            **options,
        )


def from_flags(parser: argparse.ArgumentParser, config_class: type, args: argparse.Namespace) -> Any:
    """The dataclass with the given flags' values; a value that it refuses ends the program, naming the flag."""
    names = {field.name for field in dataclasses.fields(config_class)}
    try:
        return config_class(**{name: value for name, value in vars(args).items() if name in names})
    except (ConfigError, RequestError) as error:
        refuse(parser, error)


def refuse(parser: argparse.ArgumentParser, error: ConfigError | RequestError) -> NoReturn:
    """Ends the program as argparse does for a bad flag, in the flag's name."""
    parser.error(f"argument {_flag(error.field)}: {str(error).removeprefix(f'{error.field}: ')}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value_options(hint: Any) -> dict[str, Any]:
    """What argparse must know of a field's type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return _value_options(members[0])
    if hint is bool:
        return {"action": "store_true"}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is tuple:
        return {"action": "append", "type": typing.get_args(hint)[0], "metavar": "VALUE"}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "VALUE")}


class _SglangFlag(NamedTuple):
    """A launch flag of SGLang that sgjax lacks. `neutral` values ask for what happens anyway."""

    names: tuple[str, ...]
    neutral: tuple[str, ...] = ()
    is_switch: bool = False
    instead: str = ""


_SGLANG_FLAGS = (
    _SglangFlag(("--tp-size", "--tp", "--tensor-parallel-size"), ("1",)),
    _SglangFlag(("--dp-size", "--dp", "--data-parallel-size"), ("1",)),
    _SglangFlag(("--pp-size", "--pp", "--pipeline-parallel-size"), ("1",)),
    _SglangFlag(("--ep-size", "--ep", "--expert-parallel-size"), ("1",)),
    _SglangFlag(("--nnodes",), ("1",)),
    _SglangFlag(("--node-rank",), ("0",)),
    _SglangFlag(("--dist-init-addr",)),
    _SglangFlag(("--device",), instead="jax's JAX_PLATFORMS chooses the device"),
    _SglangFlag(("--quantization",)),
    _SglangFlag(("--max-prefill-tokens",), instead="--chunked-prefill-size bounds the tokens of a prefill step"),
    _SglangFlag(("--schedule-conservativeness",), ("1", "1.0")),
    _SglangFlag(("--sampling-defaults",), ("model",)),
    _SglangFlag(("--attention-backend",), instead="--kernels chooses a kernel per operation"),
    _SglangFlag(("--sampling-backend",)),
    _SglangFlag(("--grammar-backend",), ("llguidance", "none")),
    _SglangFlag(("--speculative-algorithm",)),
    _SglangFlag(("--lora-paths",)),
    _SglangFlag(("--trust-remote-code",), is_switch=True, instead="code from a checkpoint is never run"),
    _SglangFlag(("--enable-metrics",), ("",), is_switch=True),
    _SglangFlag(("--enable-deterministic-inference",), is_switch=True),
    _SglangFlag(("--enable-lora",), is_switch=True),
    _SglangFlag(("--is-embedding",), is_switch=True),
    _SglangFlag(("--skip-server-warmup", "--enable-cache-report"), ("",), is_switch=True),
    _SglangFlag(("--disable-cuda-graph",), ("",), is_switch=True),
)


class _RefuseSglangFlag(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        flag: _SglangFlag = self.const
        given = "" if flag.is_switch else str(values)
        if given not in flag.neutral:
            only = f" (only {flag.neutral[0]})" if any(flag.neutral) else ""
            hint = f"; {flag.instead}" if flag.instead else ""
            parser.error(f"argument {option_string}: a flag of SGLang that sgjax does not support{only}{hint}")


def add_sglang_flags(parser: argparse.ArgumentParser) -> None:
    """Makes SGLang's flags that sgjax lacks known: a neutral value is accepted, any other is refused by name."""
    for flag in _SGLANG_FLAGS:
        parser.add_argument(
            *flag.names,
            action=_RefuseSglangFlag,
            nargs=0 if flag.is_switch else None,
            const=flag,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
