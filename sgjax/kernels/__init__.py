"""The operations a researcher can swap: writing the KV cache, attending over its pages, filtering what may be drawn.

One folder per op: `api.py` the typed contract, `reference.py` slow and normative, `xla.py` portable, `native.py`
C++ for CPUs, `mosaic.py` for Hopper GPUs, `specs.py` the cases that tests, ahead-of-time compilation and benchmarks
share.
"""

from sgjax.kernels.registry import OP_NAMES, Choices, Ops, describe, resolve

__all__ = ["OP_NAMES", "Choices", "Ops", "describe", "resolve"]
