"""`FOLDER/releases.db`: what the release service has to remember over a kill and a power cut.

One SQLite file in WAL mode, synchronous=FULL: what a transaction wrote is on the disk when it returns. One writer, the
service that holds the folder's lock; readers such as `jetloop release status` in any process. What stands in it is for
journal.py (attempts), aliases.py (what people set) and staging.py (engines) to say. What robots run is not in here but
in the signed repository: losing this file costs the history and some compiling.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.errors import OperatorError

NAME = "releases.db"
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,
    release_id TEXT NOT NULL,       -- empty where a version has no digest
    onnx_sha256 TEXT NOT NULL,
    targets TEXT NOT NULL,          -- JSON list
    limits TEXT NOT NULL,           -- gates and overrides in force when it began
    change_id INTEGER NOT NULL,     -- the change of the alias that it answers
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    gates TEXT NOT NULL DEFAULT '[]',
    overrides TEXT NOT NULL DEFAULT '[]',
    sequence INTEGER,               -- of the channel, once it is signed
    told INTEGER NOT NULL DEFAULT 0,  -- MLflow has been told the outcome
    begun_at TEXT NOT NULL,
    changed_at TEXT NOT NULL
);
CREATE UNIQUE INDEX one_under_way ON attempt(channel)
    WHERE state IN ('pending', 'gated', 'compiled', 'verified', 'signed');
CREATE UNIQUE INDEX one_per_sequence ON attempt(channel, sequence) WHERE sequence IS NOT NULL;
CREATE TABLE transition (
    id INTEGER PRIMARY KEY,
    attempt_id INTEGER NOT NULL REFERENCES attempt(id),
    state TEXT NOT NULL,
    at TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX transition_by_attempt ON transition(attempt_id);
CREATE TABLE alias_change (
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,          -- empty: the alias was on none
    seen_unix_s REAL NOT NULL
);
CREATE INDEX alias_change_by_channel ON alias_change(channel, id);
CREATE TABLE heard (
    id INTEGER PRIMARY KEY,
    delivery_id TEXT NOT NULL UNIQUE,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,
    heard_unix_s REAL NOT NULL,
    looked INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX heard_not_looked ON heard(channel) WHERE looked = 0;
CREATE TABLE engine (
    onnx_sha256 TEXT NOT NULL,      -- of the file that was compiled
    golden_sha256 TEXT NOT NULL,
    target TEXT NOT NULL,
    engine_sha256 TEXT NOT NULL,
    measured TEXT NOT NULL,
    engine_key TEXT NOT NULL,       -- JSON, null for an engine that any machine of the target loads
    memory_mb REAL,
    built_at TEXT NOT NULL,
    PRIMARY KEY (onnx_sha256, golden_sha256, target)
);
CREATE TABLE imported (path TEXT PRIMARY KEY);
"""


class Database:
    """One connection, used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = threading.RLock()

    @classmethod
    def open(cls, folder: Path) -> "Database":
        """Opens the database of a release folder, or makes it.

        Raises:
            OperatorError: it is damaged, from a newer jetloop, or cannot be written.
        """
        path = folder / NAME
        with _explained(path):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            database = cls(connection, path)
            with database.changing():
                database._make_tables()
            return database

    @classmethod
    def open_to_read(cls, folder: Path) -> "Database | None":
        """Opens it for reading alone; None where no service has made one yet.

        Raises:
            OperatorError: it is damaged or cannot be read.
        """
        path = folder / NAME
        if not path.exists():
            return None
        with _explained(path):
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10
            )
            connection.row_factory = sqlite3.Row
            return cls(connection, path)

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk afterwards, or none of it.

        Raises:
            OperatorError: the disk is full, or the file damaged.
        """
        with self._lock, _explained(self._path):
            if self._connection.in_transaction:  # part of a larger one
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """The rows that a query finds.

        Raises:
            OperatorError: the file is damaged.
        """
        with self._lock, _explained(self._path):
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _make_tables(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise OperatorError(f"{self._path} was made by a newer jetloop (schema {found}): run that one")
        if found == 0:
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as problem:  # locked, disk full, not writable
        raise OperatorError(
            f"{path} cannot be used ({problem}): free space, mend its rights or stop what holds it"
        ) from problem
    except sqlite3.IntegrityError:
        raise  # a fault of ours
    except sqlite3.DatabaseError as problem:
        raise OperatorError(f"{path} is damaged ({problem}): move it away, releasing goes on without it") from problem
