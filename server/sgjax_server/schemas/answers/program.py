"""What a program made, and the events that tell of it while it runs."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from sgjax.lang.usage import Usage


class ProgramAnswer(TypedDict):
    """All that a program made. `meta_info` is by variable, `usage` are totals."""

    id: str
    result: Any
    text: str
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    meta_info: dict[str, Any]
    usage: Usage


class ProgramStarted(TypedDict):
    type: Literal["start"]
    id: str


class ProgramForked(TypedDict):
    """State `state` has new states, at this place in the program."""

    type: Literal["fork"]
    state: int
    at: str
    children: list[int]


class VariableGrows(TypedDict):
    type: Literal["delta"]
    state: int
    name: str
    text: str


class VariableSet(TypedDict):
    """`meta_info` where it was generated."""

    type: Literal["value"]
    state: int
    name: str
    value: Any
    meta_info: NotRequired[dict[str, Any]]


class TextGrows(TypedDict):
    """Of state 0, constants included."""

    type: Literal["text"]
    text: str


class ProgramEnded(ProgramAnswer):
    """`transcript`: what a client needs to go on from the end."""

    type: Literal["end"]
    transcript: Any


type ProgramEvent = ProgramStarted | ProgramForked | VariableGrows | VariableSet | TextGrows | ProgramEnded
