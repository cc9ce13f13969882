"""Settings of the HTTP service; those of the engine are in `sgjax.config`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sgjax.config import ConfigError, setting

LogLevel = Literal["debug", "info", "warning", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how the engine is served. Field names are SGLang's where it has the setting."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface, without any authentication")
    port: int = setting(30000, "Port to listen on; 0 takes a free one")
    served_model_name: str | None = setting(None, "Model name that clients see; default: from the checkpoint")
    stream_interval: int = setting(1, "Tokens between two chunks of a stream")
    max_running_programs: int = setting(128, "Programs at work at once before /run_program refuses more")
    log_level: LogLevel = setting("info", "Least severe log lines shown; debug includes one line per HTTP request")

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", f"must lie in [0, 65535], not {self.port}")
        for name in ("stream_interval", "max_running_programs"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, not {getattr(self, name)}")
