"""Checks and times kernels and decode steps on a machine with a GPU. Not run on one yet: see README.md."""
