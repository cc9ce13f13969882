"""What the HTTP processes of a server have in common, so that a client need not know which of them answers."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Callable

from sgjax_server.config import LogLevel, RequestDetail
from sgjax_server.database import create_database


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """As one of them sees it.

    Attributes:
      worker: its number, of which there is no other.
      database: for sessions and stored responses.
      metrics_folder: for the counts of all processes; None where there is one.
      announce_logging: tells the others, and whatever else belongs to the server, what is logged from now on.
      started_s: when the server was started, in seconds of Unix time.
    """

    worker: int
    database: sqlite3.Connection
    metrics_folder: str | None
    announce_logging: Callable[[RequestDetail, LogLevel | None], None]
    started_s: int

    @classmethod
    def alone(cls) -> Shared:
        """Where this process is the only one."""
        return cls(
            worker=0,
            database=create_database(None),
            metrics_folder=None,
            announce_logging=lambda detail, level: None,
            started_s=int(time.time()),
        )
