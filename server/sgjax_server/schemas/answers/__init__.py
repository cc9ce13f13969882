"""Answers of each API. Nothing checks them while the server runs: routes build them, tests compare."""
