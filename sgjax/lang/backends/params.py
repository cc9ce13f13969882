"""`ir.Sampling` as the engine's and SGLang's sampling parameters."""

from __future__ import annotations

from typing import Any

from sgjax.lang.ir import Sampling

# What is not a sampling parameter but says which log-probabilities to report.
_REPORT = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")

# Numbers end where something else begins; the stop keeps a model from going on.
_DTYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int": (r"[+-]?[0-9]+[ \n]?", (" ", "\n")),
    "float": (r"[+-]?[0-9]*\.?[0-9]+[ \n]?", (" ", "\n")),
    "bool": (r"(True|False)", ()),
    "str": (r'"[\w\d\s]*"', ()),
}


def dtype_name(dtype: Any) -> str:
    """ "int", "float", "bool" or "str", of the type or its name.

    Raises:
      ValueError: another type.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", repr(dtype))
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {name}")
    return name


def dtype_regex(dtype: Any) -> str:
    """What a value of that type looks like."""
    return _DTYPES[dtype_name(dtype)][0]


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    """The sampling parameters by their names in a request; a `dtype` becomes a regular expression."""
    params = {name: value for name, value in sampling.given().items() if name not in (*_REPORT, "dtype")}
    for name in ("stop", "stop_token_ids", "stop_regex"):
        if name in params:
            value = params[name]
            params[name] = [value] if isinstance(value, (str, int)) else list(value)
    if sampling.dtype is not None:
        regex, stop = _DTYPES[dtype_name(sampling.dtype)]
        if "regex" in params:
            raise ValueError("give either dtype or regex")
        params["regex"] = regex
        params["stop"] = [*params.get("stop", []), *stop]
    if "seed" in params:
        params["sampling_seed"] = params.pop("seed")
    return params


def logprob_options(sampling: Sampling) -> dict[str, Any]:
    """Which log-probabilities a request reports; empty when none."""
    if not sampling.return_logprob:
        return {}
    given = sampling.given()
    return {name: given[name] for name in _REPORT if name in given}
