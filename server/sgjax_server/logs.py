"""How log lines look, as text or as JSON. A record's `facts` are named values, which both forms show."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from sgjax_server.config import LogFormat, LogLevel


def set_up_logging(log_level: LogLevel, log_format: LogFormat) -> None:
    """Sends the log of this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    set_log_level(log_level)


def set_log_level(log_level: LogLevel) -> None:
    """The least severe lines of sgjax that are shown; uvicorn's own repeat what the ready line says."""
    level = log_level.upper()
    for name in ("sgjax", "sgjax_server"):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("uvicorn").setLevel(level if log_level in ("debug", "error") else "WARNING")


class TextFormatter(logging.Formatter):
    """A line for people, with `name=value` for each fact."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = (f" {name}={_bare(value)}" for name, value in _facts(record).items() if value is not None)
        return super().formatMessage(record) + "".join(facts)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the facts, and a traceback in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        whole = int(record.created)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "facts", {})


def _bare(value: Any) -> str:
    """A value on one line, in quotes where its end could not be seen."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if text and not set(text) & set(' "\n\r\t=') else json.dumps(text, ensure_ascii=False)
