"""Settings of the HTTP service; those of the engine are in `sgjax.config`."""

from __future__ import annotations

import dataclasses
import math
import os
import ssl
from typing import Any, Literal

from sgjax.config import ConfigError, setting
from sgjax_server.chat.parsers.reasoning import ReasoningFormatName
from sgjax_server.chat.tool_formats import ToolFormatName
from sgjax_server.tracing import endpoint_problem

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LiveView = Literal["auto", "full", "tree", "off"]
RequestDetail = Literal["off", "metadata", "full"]
"""No line per request; one without anything that a client wrote or was answered; one with both bodies."""
ToolCallParser = Literal["auto", "none", ToolFormatName]
ReasoningParser = Literal["auto", "none", ReasoningFormatName]


def _secret(variable: str, help: str) -> Any:
    """A setting that is shown nowhere, and may come from the environment, which `ps` does not show either."""
    return dataclasses.field(
        default_factory=lambda: os.environ.get(variable),
        repr=False,
        metadata={"help": f"{help}; default: {variable} of the environment", "secret": True},
    )


_COUNTS = (
    *("stream_interval", "max_request_bytes", "max_running_programs"),
    *("max_sessions", "max_session_tokens", "max_stored_responses", "max_stored_response_bytes"),
    *("http_workers", "drain_timeout"),
)
_DURATIONS = (
    *("request_body_timeout_s", "request_timeout_s", "session_timeout_s", "health_generate_timeout_s"),
    "watchdog_timeout",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how the engine is served. Field names are SGLang's where it has the setting."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface")
    port: int = setting(30000, "Port to listen on; 0 takes a free one")
    served_model_name: str | None = setting(None, "Model name that clients see; default: from the checkpoint")
    stream_interval: int = setting(1, "Tokens between two chunks of a stream")
    api_key: str | None = _secret("SGJAX_API_KEY", "Key that every request but those of probes must bring")
    admin_api_key: str | None = _secret("SGJAX_ADMIN_API_KEY", "Key that routes which control the server need instead")
    cors_allow_origins: tuple[str, ...] = setting((), "Origin whose web pages may call the server, or *; repeatable")
    ssl_certfile: str | None = setting(None, "Certificate chain in PEM; serves HTTPS")
    ssl_keyfile: str | None = setting(None, "The certificate's private key in PEM; default: in the same file")
    ssl_keyfile_password: str | None = _secret("SGJAX_SSL_KEYFILE_PASSWORD", "Password of the private key")
    live_view: LiveView = setting(
        "auto",
        "Live page: full shows how cached prompts begin, tree only how long they are, off nothing; auto: full for "
        "whoever has the admin key or, where there is none, for browsers on this machine; tree for others",
    )
    max_request_bytes: int = setting(32 * 2**20, "Longest body of a request, in bytes")
    request_body_timeout_s: float = setting(60.0, "Seconds until a request's headers, and then its body, must be here")
    request_timeout_s: float | None = setting(None, "Seconds until an unfinished request is ended; default: never")
    tool_call_parser: ToolCallParser = setting(
        "auto", "How the model writes calls of tools; auto looks at its template"
    )
    reasoning_parser: ReasoningParser = setting("auto", "How the model writes reasoning; auto looks at its template")
    max_running_programs: int = setting(128, "Programs at work in an HTTP process before /run_program refuses more")
    max_sessions: int = setting(256, "Sessions kept open; beyond, those used least recently are forgotten")
    max_session_tokens: int = setting(2**24, "Tokens that all sessions may hold together, 4 bytes each")
    session_timeout_s: float = setting(3600.0, "Seconds that an unused session is kept, unless it says another time")
    max_stored_responses: int = setting(4096, "Responses kept for later; beyond, the least recently used are forgotten")
    max_stored_response_bytes: int = setting(64 * 2**20, "Bytes that the responses kept for later may take, as JSON")
    health_generate_timeout_s: float = setting(20.0, "Seconds until /health_generate gives up waiting for a token")
    otlp_endpoint: str | None = setting(
        None, "OpenTelemetry collector for traces, such as http://localhost:4318; needs the extra otel"
    )
    http_workers: int = setting(1, "Processes that speak HTTP, tokenise and detokenise")
    watchdog_timeout: float = setting(300.0, "Seconds after which an engine whose step hangs is restarted")
    drain_timeout: int = setting(30, "Seconds that requests at work get to finish when the server is told to stop")
    log_level: LogLevel = setting("info", "Least severe log lines shown")
    log_format: LogFormat = setting("text", "Form of log lines")
    log_requests: RequestDetail = setting(
        "off", "One log line per request: none, without contents, or with both bodies"
    )

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", f"must lie in [0, 65535], not {self.port}")
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(name, f"must be at least 1, not {value}")
        for name in _DURATIONS:
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ConfigError(name, f"must be positive, not {value}")
        for name in ("api_key", "admin_api_key"):
            if (key := getattr(self, name)) is not None and not (key.isascii() and key.isprintable() and key.strip()):
                raise ConfigError(name, "must be printable ASCII, and not empty")
        if self.otlp_endpoint is not None and (problem := endpoint_problem(self.otlp_endpoint)) is not None:
            raise ConfigError("otlp_endpoint", problem)
        self._check_certificate()

    def _check_certificate(self) -> None:
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ConfigError("ssl_keyfile", "needs --ssl-certfile")
            return
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password this would ask for one on the terminal.
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password or "")
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError("ssl_certfile", f"certificate and key cannot be used: {error}") from None

    def public(self) -> dict[str, Any]:
        """Every setting that is no secret."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("secret", False)
        }
