"""What parsers find in a model's output."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what comes before the answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallStarted:
    """A call of the tool `name` begins; the one before it, if any, is over."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the call's arguments, which are JSON text."""

    text: str


Piece = Text | Reasoning | CallStarted | Arguments
