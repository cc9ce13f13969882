"""What is logged, changed while the server runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sgjax_server.config import LogLevel, RequestDetail
from sgjax_server.schemas.common import ApiModel


class ConfigureLoggingRequest(ApiModel):
    """SGLang's form, and sgjax's names. What is left out stays as it is.

    Attributes:
      log_requests: whether or how requests are logged.
      log_requests_level: SGLang's: 0 and 1 are metadata, 2 and 3 also contents.
    """

    log_requests: bool | RequestDetail | None = None
    log_requests_level: Annotated[int, Field(ge=0, le=3)] | None = None
    log_level: LogLevel | None = None

    def detail(self, before: RequestDetail) -> RequestDetail:
        """What is to be logged of requests, given what is."""
        if isinstance(self.log_requests, str):
            return self.log_requests
        if self.log_requests is False or (self.log_requests is None and before == "off"):
            return "off"
        if self.log_requests_level is None:
            return "metadata" if before == "off" else before
        return "full" if self.log_requests_level >= 2 else "metadata"
