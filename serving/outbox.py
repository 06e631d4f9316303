"""What waits for the broker: a bounded queue in SQLite that survives kill -9 and power failure.

It stores finished messages and hands them out oldest first; what they say is the reporter's part, sending them the
link's. Bounded by bytes: metrics are dropped oldest first, and only when there are none left, events. What was dropped
is counted on the disk too, so that the reporter can tell.
"""

import logging
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, NamedTuple, Sequence

from serving.errors import OperatorError

EVENT = "event"
METRICS = "metrics"
ROW_BYTES = 100  # what a row costs beside its payload and topic, about
_ROOM_SHARE = 0.75  # fuller than this, a report of what was dropped would only be dropped itself

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, also after a delete: the link resumes after an id
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS oldest_of_kind ON messages (kind, id);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_COST = f"LENGTH(payload) + LENGTH(topic) + {ROW_BYTES}"

log = logging.getLogger(__name__)


class Draft(NamedTuple):
    """A message that lacks only its sequence number."""

    kind: str  # EVENT or METRICS
    topic: str
    encode: Callable[[int], bytes]  # sequence number -> payload


class Message(NamedTuple):
    """A stored message."""

    id: int  # rises; never used twice
    kind: str
    topic: str
    payload: bytes


class Dropped(NamedTuple):
    """How many messages were dropped and not yet told of."""

    metrics: int = 0
    events: int = 0


NOTHING = Dropped()


@dataclass
class _Ledger:
    """What the tables amount to, kept so that no call counts rows; replaced as a whole at each commit."""

    depth: int
    bytes: int
    sequence: int  # the last one given
    dropped_metrics: int
    dropped_events: int


class Outbox:
    """The queue in one SQLite file; any thread may call any method.

    Args:
        path: of the database; made if it is missing, put aside and begun anew if it is damaged.
        max_bytes: of payloads, topics and rows together. The file itself may be a fifth larger.

    Raises:
        OperatorError: the file cannot be opened or made.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.on_put: Callable[[], None] = lambda: None  # called after each commit of new messages: the link's wake-up
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(path)
            self._ledger = _read_ledger(self._db)
        except OSError as problem:
            raise OperatorError(f"{path}: {problem.strerror}; check robot.state_dir and its owner") from None
        except (sqlite3.Error, UnicodeDecodeError) as problem:
            if not _is_damage(problem):
                raise OperatorError(f"{path}: {problem}; check the disk and who owns the file") from None
            self._begin_anew(problem)

    def put(self, drafts: Sequence[Draft], lost: Dropped = NOTHING) -> None:
        """Stores messages in their order, all or none, and returns once they are on the disk.

        Args:
            drafts: each gets the next sequence number.
            lost: messages that never came this far; counted with what is dropped here.

        Raises:
            OperatorError: the disk is full or failed; nothing was stored.
        """
        with self._transaction() as ledger:
            ledger.dropped_metrics += lost.metrics
            ledger.dropped_events += lost.events
            for draft in drafts:
                self._store(draft, ledger)
        self.on_put()

    def report_dropped(self, draft: Callable[[Dropped], Draft]) -> bool:
        """Puts one message that tells what was dropped, once there is room for it, and counts from zero again.

        Raises:
            OperatorError: the disk is full or failed; nothing was stored.
        """
        with self._lock:
            dropped = self.dropped()
            if not any(dropped) or self._ledger.bytes > self.max_bytes * _ROOM_SHARE:
                return False
            with self._transaction() as ledger:
                ledger.dropped_metrics = ledger.dropped_events = 0
                self._store(draft(dropped), ledger)
        self.on_put()
        return True

    def batch(self, n: int, after: int = 0) -> List[Message]:
        """The oldest `n` messages whose id is above `after`, oldest first. They stay stored until `done`.

        Raises:
            OperatorError: the disk failed.
        """
        query = "SELECT id, kind, topic, payload FROM messages WHERE id > ? ORDER BY id LIMIT ?"
        with self._errors_translated():
            return [Message(*row) for row in self._db.execute(query, (after, n))]

    def done(self, ids: Iterable[int]) -> None:
        """Forgets messages that the broker has acknowledged; ids that are not there any more are passed over.

        Raises:
            OperatorError: the disk failed; they will be sent again.
        """
        with self._transaction() as ledger:
            for one in ids:
                self._delete("id = ?", (one,), ledger)

    def depth(self) -> int:
        """How many messages wait; never waits for the disk."""
        return self._ledger.depth

    def dropped(self) -> Dropped:
        """What was dropped and not yet told of; never waits for the disk."""
        ledger = self._ledger
        return Dropped(ledger.dropped_metrics, ledger.dropped_events)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next message gets; never used twice, also not after a crash."""
        return self._ledger.sequence + 1

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _store(self, draft: Draft, ledger: _Ledger) -> None:
        ledger.sequence += 1
        payload = draft.encode(ledger.sequence)
        cost = len(payload) + len(draft.topic.encode()) + ROW_BYTES
        while ledger.bytes + cost > self.max_bytes and self._delete_oldest(METRICS, ledger):
            ledger.dropped_metrics += 1
        if draft.kind == METRICS and ledger.bytes + cost > self.max_bytes:
            ledger.dropped_metrics += 1  # no event gives way to metrics
            return
        while ledger.bytes + cost > self.max_bytes and self._delete_oldest(EVENT, ledger):
            ledger.dropped_events += 1
        if ledger.bytes + cost > self.max_bytes:
            ledger.dropped_events += 1
            return
        self._db.execute(
            "INSERT INTO messages (kind, topic, payload, created) VALUES (?, ?, ?, ?)",
            (draft.kind, draft.topic, payload, time.time()),
        )
        ledger.depth += 1
        ledger.bytes += cost

    def _delete_oldest(self, kind: str, ledger: _Ledger) -> bool:
        return self._delete("id = (SELECT MIN(id) FROM messages WHERE kind = ?)", (kind,), ledger)

    def _delete(self, where: str, values: Sequence[object], ledger: _Ledger) -> bool:
        gone = self._db.execute(f"DELETE FROM messages WHERE {where} RETURNING {_COST}", values).fetchall()
        ledger.depth -= len(gone)
        ledger.bytes -= sum(cost for (cost,) in gone)
        return bool(gone)

    @contextmanager
    def _transaction(self) -> Iterator[_Ledger]:
        """One transaction; the ledger follows only if it was committed."""
        with self._errors_translated():
            ledger = _Ledger(**vars(self._ledger))
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield ledger
                _write_ledger(self._db, ledger)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._ledger = ledger

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, UnicodeDecodeError) as problem:
                if _is_damage(problem):
                    self._db.close()
                    self._begin_anew(problem)
                raise OperatorError(f"{self.path}: {problem}; free disk space or check the disk") from None

    def _begin_anew(self, problem: Exception) -> None:
        """Puts a damaged database aside for a person to look at, and begins an empty one."""
        aside = self.path.with_name(self.path.name + ".damaged")
        log.error("%s is damaged (%s): put aside as %s, and begun anew", self.path, problem, aside.name)
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._db = _connect(self.path)
            self._ledger = _read_ledger(self._db)
            with self._transaction() as ledger:
                # The numbers given so far are lost. No robot makes an event every second of its life, so the clock
                # in seconds is above all of them, and no number is used twice. (The floor: a clock not yet set.)
                ledger.sequence = max(int(time.time()), 1_790_000_000)
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


class _Damage(sqlite3.DatabaseError):
    """SQLite's own check found the file damaged."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


# SQLITE_ERROR among them: our few statements are right, so what is wrong with them is the schema in the file.
_DAMAGE_CODES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB)


def _is_damage(problem: Exception) -> bool:
    if isinstance(problem, UnicodeDecodeError):  # SQLite's message quotes what it found in a damaged file
        return True
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF in _DAMAGE_CODES  # the low byte is the primary code


_COUNTERS = ("sequence", "dropped_metrics", "dropped_events")


def _read_ledger(db: sqlite3.Connection) -> _Ledger:
    depth, used = db.execute(f"SELECT COUNT(*), COALESCE(SUM({_COST}), 0) FROM messages").fetchone()
    counters = dict(db.execute("SELECT name, value FROM counters"))
    values = [counters.get(name, 0) for name in _COUNTERS]
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise _Damage(f"counters {counters}")
    return _Ledger(depth, used, *values)


def _write_ledger(db: sqlite3.Connection, ledger: _Ledger) -> None:
    db.executemany(
        "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [(name, getattr(ledger, name)) for name in _COUNTERS],
    )
