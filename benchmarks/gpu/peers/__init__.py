"""What others' kernels and engines do with the same workloads, on the same device, in the same run.

A peer that is not installed, or does not load, is reported as left out.
"""
