"""Leaves out the texts of special tokens, where the stream shows them because a call's marks are among them."""

from __future__ import annotations

from sgjax_server.chat.parsers.source import Reading, Source


def hide(source: Source, marks: tuple[str, ...]) -> Reading[None]:
    """Gives the text without `marks`."""
    while (yield from source.until(marks)):
        source.take()
