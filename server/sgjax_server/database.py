"""The tables that the HTTP processes of a server share, in an SQLite file, so that any of them can serve any client.

Rows of what is being generated name the HTTP process that does it as their `owner`; it is null when they have ended.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

# Another process has the lock for a moment; one that died has it no more.
_LOCK_S = 10.0

# Tokens and texts come last: a row's other columns are read without the pages that these fill. Sums are kept, since
# every request asks whether the bounds hold.
_TABLES = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    is_linear INTEGER,
    idle_s REAL,
    used_s REAL,
    num_tokens INTEGER DEFAULT 0
);
CREATE TABLE session_requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT REFERENCES sessions ON DELETE CASCADE,
    rid TEXT,
    parent INTEGER REFERENCES session_requests ON DELETE SET NULL,
    num_tokens INTEGER,
    owner INTEGER,
    input_ids BLOB,
    output_ids BLOB,
    UNIQUE (session, rid)
);
CREATE INDEX session_requests_by_parent ON session_requests (parent);
CREATE INDEX session_requests_at_work ON session_requests (owner, session) WHERE owner IS NOT NULL;
CREATE TRIGGER session_grows AFTER INSERT ON session_requests BEGIN
    UPDATE sessions SET num_tokens = num_tokens + new.num_tokens WHERE id = new.session;
END;
CREATE TRIGGER session_goes_on AFTER UPDATE OF num_tokens ON session_requests BEGIN
    UPDATE sessions SET num_tokens = num_tokens + new.num_tokens - old.num_tokens WHERE id = new.session;
END;
CREATE TRIGGER session_shrinks AFTER DELETE ON session_requests BEGIN
    UPDATE sessions SET num_tokens = num_tokens - old.num_tokens WHERE id = old.session;
END;

CREATE TABLE responses (id TEXT PRIMARY KEY, owner INTEGER, used_s REAL, num_bytes INTEGER, input TEXT, body TEXT);
CREATE INDEX responses_by_use ON responses (used_s, owner);
CREATE TABLE responses_total (num_responses INTEGER, num_bytes INTEGER);
INSERT INTO responses_total VALUES (0, 0);
CREATE TRIGGER responses_grow AFTER INSERT ON responses BEGIN
    UPDATE responses_total SET num_responses = num_responses + 1, num_bytes = num_bytes + new.num_bytes;
END;
CREATE TRIGGER responses_change AFTER UPDATE OF num_bytes ON responses BEGIN
    UPDATE responses_total SET num_bytes = num_bytes + new.num_bytes - old.num_bytes;
END;
CREATE TRIGGER responses_shrink AFTER DELETE ON responses BEGIN
    UPDATE responses_total SET num_responses = num_responses - 1, num_bytes = num_bytes - old.num_bytes;
END;
"""


def create_database(folder: str | None) -> sqlite3.Connection:
    """New tables: in a file in `folder`, or in the memory of this process alone."""
    database = open_database(folder)
    database.execute("PRAGMA journal_mode = WAL")  # what a process killed in the middle of writing had begun is undone
    database.executescript(_TABLES)
    return database


def open_database(folder: str | None) -> sqlite3.Connection:
    """The tables that are there. One thread at a time may use them."""
    path = ":memory:" if folder is None else Path(folder) / "shared.sqlite"
    database = sqlite3.connect(path, timeout=_LOCK_S, autocommit=True, check_same_thread=False)
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = OFF")  # nobody reads the file after the machine has gone down
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or, when something is raised, nothing; meanwhile no other process writes."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def forget_worker(database: sqlite3.Connection, worker: int) -> None:
    """Ends what an HTTP process that died was generating: responses have failed, requests of sessions never were."""
    error = "the HTTP process that generated the response has ended"
    with transaction(database):
        database.execute("DELETE FROM session_requests WHERE owner = ?", (worker,))
        database.execute(
            "UPDATE responses SET owner = NULL, body = json_set(body, '$.status', 'failed', "
            "'$.error', json_object('code', 'server_error', 'message', ?)) WHERE owner = ?",
            (error, worker),
        )
