"""The outbox's SQLite file: opened, checked, put aside when damaged, waited for when the disk refuses.

What is queued and what is dropped is outbox.py's; here is only that a transaction is on the disk as a whole or not at
all, also after kill -9 and power failure, and which of its errors a person must mend before the robot starts.
"""

import errno
import logging
import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from serving.errors import OperatorError

ROW_BYTES = 100  # what a row costs beside its payload and topic, about
COST = f"LENGTH(payload) + LENGTH(topic) + {ROW_BYTES}"
_SEQUENCE_FLOOR = 1_790_000_000  # Unix seconds, for a clock that was not set

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, also after a delete: the link resumes after an id
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    created REAL NOT NULL                  -- the outbox's own clock, see Ledger.clock_s
);
CREATE INDEX IF NOT EXISTS oldest_of_kind ON messages (kind, id);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

log = logging.getLogger(__name__)


@dataclass
class Ledger:
    """What the tables amount to, kept so that no call counts rows; replaced as a whole at each commit."""

    depth: int = 0
    bytes: int = 0
    sequence: int = 0  # the last one given
    dropped_metrics: int = 0
    dropped_events: int = 0
    clock_s: int = 0  # how long an outbox was open here, in all: an age that no jump of the wall clock changes


_COUNTERS = ("sequence", "dropped_metrics", "dropped_events", "clock_s")


class OutboxFile:
    """One connection behind one lock; any thread may use it.

    A disk that is full or read-only when the daemon starts is no reason not to drive: the file is then opened by the
    first transaction that finds the disk well again.

    Raises:
        OperatorError: the path is wrong or not ours to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger()
        self._lock = threading.RLock()
        self._db: Optional[sqlite3.Connection] = None
        self._closed = False
        self._clock_from_s = time.monotonic()
        try:
            self._open()
        except (OSError, sqlite3.Error, UnicodeDecodeError) as problem:
            if _is_damage(problem):
                self._begin_anew(problem)
            elif not _may_pass(problem, path):
                raise OperatorError(
                    f"{path}: {_said(problem)}; check the disk, robot.state_dir and its owner"
                ) from None
            else:
                log.error("%s: %s; driving on, events wait in memory until it can be written", path, _said(problem))

    def clock_s(self) -> float:
        """The outbox's own clock: it goes while an outbox is open, and never jumps."""
        return self.ledger.clock_s + time.monotonic() - self._clock_from_s

    def execute(self, statement: str, values: Sequence[object] = ()) -> List[Tuple[Any, ...]]:
        """Runs one statement inside `transaction` or `reading`, and gives its rows."""
        assert self._db is not None
        return self._db.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds the lock; errors of SQLite become an OperatorError, a damaged file is replaced.

        Raises:
            OperatorError: the disk is full or failed.
        """
        with self._lock:
            try:
                if self._closed:
                    raise sqlite3.ProgrammingError("the outbox is closed")
                if self._db is None:
                    self._open()
                yield
            except (OSError, sqlite3.Error, UnicodeDecodeError) as problem:
                if _is_damage(problem):
                    self._disconnect()
                    self._begin_anew(problem)
                elif not _is_full(problem):
                    self._disconnect()  # a connection that met a failing disk is not used again
                raise OperatorError(f"{self.path}: {_said(problem)}; free disk space or check the disk") from None

    @contextmanager
    def transaction(self) -> Iterator[Ledger]:
        """One transaction; the ledger follows only if it was committed.

        Raises:
            OperatorError: the disk is full or failed; nothing was changed.
        """
        with self.reading():
            assert self._db is not None
            ledger = Ledger(**vars(self.ledger))
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield ledger
                ledger.clock_s = int(self.clock_s())
                _write_counters(self._db, ledger)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db is not None and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._clock_from_s += ledger.clock_s - self.ledger.clock_s
            self.ledger = ledger

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(self.path)
        try:
            self.ledger = _read_ledger(db)
        except BaseException:
            db.close()
            raise
        self._db, self._clock_from_s = db, time.monotonic()

    def _begin_anew(self, problem: Exception) -> None:
        """Puts a damaged database aside for a person to look at, and begins an empty one."""
        aside = self.path.with_name(self.path.name + ".damaged")
        log.error("%s is damaged (%s): put aside as %s, and begun anew", self.path, problem, aside.name)
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._open()
            with self.transaction() as ledger:
                # The numbers given so far are lost. No robot makes an event every second of its life, so the clock
                # in seconds is above all of them, and no number is used twice.
                ledger.sequence = max(int(time.time()), _SEQUENCE_FLOOR)
        except (OSError, sqlite3.Error) as failure:
            raise OperatorError(f"{self.path} is damaged and cannot be replaced: {failure}; check the disk") from None


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.text_factory = lambda raw: raw.decode(errors="replace")  # a damaged topic is the link's to leave out
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before it returns
        db.execute("PRAGMA journal_size_limit = 4194304")
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _Damage(found)
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _read_ledger(db: sqlite3.Connection) -> Ledger:
    depth, used = db.execute(f"SELECT COUNT(*), COALESCE(SUM({COST}), 0) FROM messages").fetchone()
    counters = dict(db.execute("SELECT name, value FROM counters"))
    values = [counters.get(name, 0) for name in _COUNTERS]
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise _Damage(f"counters {counters}")
    return Ledger(depth, used, *values)


def _write_counters(db: sqlite3.Connection, ledger: Ledger) -> None:
    db.executemany(
        "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [(name, getattr(ledger, name)) for name in _COUNTERS],
    )


class _Damage(sqlite3.DatabaseError):
    """SQLite's own check found the file damaged."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


# SQLITE_ERROR among them: our few statements are right, so what is wrong with them is the schema in the file.
_DAMAGE_CODES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB)
_PASSING_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _code(problem: Exception) -> int:
    """SQLite's primary error code; 0 for what is not SQLite's."""
    return int(getattr(problem, "sqlite_errorcode", 0)) & 0xFF


def _is_damage(problem: Exception) -> bool:
    if isinstance(problem, UnicodeDecodeError):  # SQLite's message quotes what it found in a damaged file
        return True
    return _code(problem) in _DAMAGE_CODES


def _is_full(problem: Exception) -> bool:
    return _code(problem) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)


def _may_pass(problem: Exception, path: Path) -> bool:
    """Whether the disk refuses for now, and nothing is wrong with the path or its owner."""
    if isinstance(problem, OSError):
        return problem.errno in _PASSING_ERRNOS
    if _code(problem) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY):
        return True
    if _code(problem) not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return False
    disk = os.statvfs(path.parent)
    return bool(disk.f_flag & os.ST_RDONLY) or disk.f_bavail == 0


def _said(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem)
