"""Incremental parsers of what models write: tool calls, one file per format, and reasoning.

A format is a generator that reads a `Source`. Calls of tools that were not offered are text, like all
that is malformed.
"""
