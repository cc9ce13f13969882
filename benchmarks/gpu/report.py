"""The rows that parts report. No jax and no torch, so that a peer's process loads what it needs and nothing else."""

from __future__ import annotations

import importlib
import json
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """How a part runs.

    Attributes:
      tiny: shapes for a CPU, which show that everything runs and nothing else.
      seed: of all random data; new for every run.
    """

    tiny: bool
    seed: int


class LeftOut(Exception):
    """Why something was not measured that is no failure: a peer that is not installed, a case a kernel refuses."""


def need(*modules: str) -> None:
    """Raises `LeftOut` for a package that is not here, or does not load."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise LeftOut(f"{error.name} is not installed") from None
        except (ImportError, OSError) as error:
            raise LeftOut(f"{module} does not load: {error}") from None


def report(name: str, make: Callable[..., dict[str, Any]], *args: Any, impl: str = "") -> bool:
    """Prints the row that `make(*args)` gives as one line of JSON; if it raises, a row that says so, and goes on.

    Fields with a meaning to the table: `seconds`, `bytes` and `flops` of one call; `error` and `tolerance`.

    Args:
      name: what was done; rows of the same name by several implementations are compared.
      impl: by what.

    Returns:
      Whether there is a result.
    """
    start = time.perf_counter()
    try:
        row = make(*args)
    except LeftOut as reason:
        row = {"left_out": str(reason)}
    except NotImplementedError as error:
        row = {"left_out": f"refused: {error}"}
    except Exception as error:
        traceback.print_exc()
        row = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    took_s = round(time.perf_counter() - start, 1)
    print(json.dumps({"name": name, "impl": impl, **row, "took_s": took_s}), flush=True)
    return not {"left_out", "failed"} & set(row)
