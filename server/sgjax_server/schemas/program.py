"""Requests to run a program."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from sgjax.lang.chat_format import FIXED_FORMATS
from sgjax.lang.program_check import check_program, check_sampling
from sgjax.lang.program_json import decode_arguments, decode_program, decode_sampling
from sgjax.lang.sampling import DEFAULT_SAMPLING
from sgjax.types import RequestError
from sgjax_server.programs.run import ProgramCall
from sgjax_server.schemas.common import ApiModel, RequestId, namespace

MAX_TIMEOUT_S = 3600.0


class ProgramRequest(ApiModel):
    """A program of the frontend language, with what it is called with; docs/programs_on_the_server.md has the form.

    `deltas` false: with `stream`, variables come whole instead of bit by bit. `chat_format` replaces the model's chat
    template by a fixed format.
    """

    EXAMPLES: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "program": {
                "version": 1,
                "parameters": ["topic"],
                "ops": [
                    {"kind": "append", "state": 0, "expr": ["A line about ", {"kind": "argument", "name": "topic"}]},
                    {"kind": "append", "state": 0, "expr": {"kind": "gen", "name": "line", "sampling": {}}},
                ],
            },
            "arguments": {"topic": "owls"},
            "sampling": {"max_new_tokens": 16},
        },
    )

    program: Any = None
    arguments: Any = None
    sampling: Any = None
    stream: bool = False
    deltas: bool = True
    chat_format: str | None = None
    timeout_s: float | None = None
    rid: RequestId | None = None
    priority: int | None = None
    extra_key: str | None = None
    cache_salt: str | None = None

    def call(self) -> ProgramCall:
        """The checked call.

        Raises:
          RequestError: the program, an argument or an option is refused; `field` is the path to it.
        """
        defaults = decode_sampling(self.sampling or {}).over(DEFAULT_SAMPLING)
        check_sampling(defaults, "sampling")
        program = decode_program(self.program)
        check_program(program, defaults)
        return ProgramCall(
            program=program,
            arguments=self._arguments(program.parameters),
            defaults=defaults,
            rid=self.rid or f"program-{uuid.uuid4().hex}",
            events=("deltas" if self.deltas else "values") if self.stream else "end",
            chat_format=self._chat_format(),
            priority=self.priority or 0,
            extra_key=namespace(self.cache_salt, self.extra_key),
            timeout_s=self._timeout_s(),
        )

    def _arguments(self, parameters: tuple[str, ...]) -> dict[str, Any]:
        arguments = decode_arguments({} if self.arguments is None else self.arguments)
        for name in parameters:
            if name not in arguments:
                raise RequestError(f"arguments.{name}", "is missing")
        for name in arguments:
            if name not in parameters:
                raise RequestError(f"arguments.{name}", "is no parameter of the program")
        return arguments

    def _chat_format(self) -> str | None:
        if self.chat_format is not None and self.chat_format not in FIXED_FORMATS:
            raise RequestError("chat_format", f"must be one of {', '.join(FIXED_FORMATS)}")
        return self.chat_format

    def _timeout_s(self) -> float:
        if self.timeout_s is None:
            return ProgramCall.timeout_s
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise RequestError("timeout_s", f"must lie in (0, {MAX_TIMEOUT_S:g}]")
        return self.timeout_s
