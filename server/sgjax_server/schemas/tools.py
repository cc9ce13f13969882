"""Tools in OpenAI's form."""

from __future__ import annotations

from typing import Any, Literal

from sgjax_server.chat.tools import Tool
from sgjax_server.schemas.common import ApiModel


class FunctionParam(ApiModel):
    """A function. `parameters`: the JSON schema of its arguments, an object; without it, it takes none."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolParam(ApiModel):
    type: Literal["function"] = "function"
    function: FunctionParam

    def tool(self) -> Tool:
        """Raises RequestError for a name or a schema that no call could have."""
        function = self.function
        return Tool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters,
            strict=bool(function.strict),
        )


class FunctionName(ApiModel):
    name: str


class NamedTool(ApiModel):
    """The choice of one function."""

    type: Literal["function"] = "function"
    function: FunctionName
