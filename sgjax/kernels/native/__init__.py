"""Attention for CPUs in C++: compiled on the machine that runs it, called by XLA through `jax.ffi`.

`build.py` compiles and loads the library, `attention.py` calls it; `attention.cc` is its entry, `attention.h` the
algorithm, `simd.h` the vectors.
"""
