"""What the rollout remembers in FOLDER/rollout.db: orders of people, what was done and why, what it saw last.

How far a release has come is not kept here: the signed channel file says it, to robots and to the service alike. So
this file may be lost; then only the reasons and the releases known to be good are.
"""

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from serving.errors import OperatorError

FILE = "rollout.db"
_TABLES = """
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, channel TEXT NOT NULL, kind TEXT NOT NULL, release_id TEXT NOT NULL,
    who TEXT NOT NULL, answer TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS steps (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, channel TEXT NOT NULL, sequence INTEGER NOT NULL,
    release_id TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    UNIQUE (channel, sequence, release_id, status)
) STRICT;
CREATE TABLE IF NOT EXISTS looks (
    channel TEXT PRIMARY KEY, at TEXT NOT NULL, release_id TEXT NOT NULL, outcome TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
"""


class Order(NamedTuple):
    """What a person asked for, by a command."""

    id: int
    at: str
    channel: str
    kind: str  # pause, resume, withdraw, promote
    release_id: str
    who: str


class Step(NamedTuple):
    """What was done with a rollout."""

    at: str  # RFC 3339, UTC
    channel: str
    sequence: int  # of the channel file that did it
    release_id: str
    status: str  # rolling, all, complete, paused, withdrawn
    reason: str


class Look(NamedTuple):
    """What the robots' reports said last."""

    at: str
    channel: str
    release_id: str
    outcome: str  # healthy, unhealthy, not-enough
    text: str


class RolloutTable:
    """One database. Each call opens it anew, so that commands and the service may call at any moment.

    All methods raise OperatorError when it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def ask(self, channel: str, kind: str, release_id: str, who: str) -> Order:
        """Leaves an order for the service."""
        values = (now(), channel, kind, release_id, who)
        with self._open() as database:
            sql = "INSERT INTO orders (at, channel, kind, release_id, who) VALUES (?, ?, ?, ?, ?)"
            return Order(database.execute(sql, values).lastrowid or 0, *values)

    def orders(self, channel: str) -> list[Order]:
        """Orders that were not answered yet, oldest first."""
        sql = "SELECT id, at, channel, kind, release_id, who FROM orders WHERE answer = '' AND channel = ? ORDER BY id"
        with self._open() as database:
            return [Order(*row) for row in database.execute(sql, (channel,))]

    def answer(self, order: Order, text: str) -> None:
        """What became of an order; it is not given again."""
        with self._open() as database:
            database.execute("UPDATE orders SET answer = ? WHERE id = ?", (text, order.id))

    def answered(self, order: Order) -> str:
        """What became of an order; empty while the service has not taken it."""
        with self._open() as database:
            row = database.execute("SELECT answer FROM orders WHERE id = ?", (order.id,)).fetchone()
            return str(row[0]) if row else ""

    def note(self, step: Step) -> None:
        """Adds what was done, once."""
        columns = "at, channel, sequence, release_id, status, reason"
        with self._open() as database:
            database.execute(f"INSERT OR IGNORE INTO steps ({columns}) VALUES (?, ?, ?, ?, ?, ?)", step)

    def steps(self, channel: str, limit: int = 20) -> list[Step]:
        """What was done on a channel, newest first."""
        sql = "SELECT at, channel, sequence, release_id, status, reason FROM steps WHERE channel = ?"
        with self._open() as database:
            rows = database.execute(f"{sql} ORDER BY id DESC LIMIT ?", (channel, limit))
            return [Step(*row) for row in rows]

    def has_completed(self, channel: str, release_id: str) -> bool:
        """Whether all robots of a ring ran this release before, and their reports were fine."""
        sql = "SELECT 1 FROM steps WHERE channel = ? AND release_id = ? AND status = 'complete'"
        with self._open() as database:
            return database.execute(sql, (channel, release_id)).fetchone() is not None

    def saw(self, look: Look) -> None:
        """Keeps what the reports said last."""
        sql = "INSERT OR REPLACE INTO looks (at, channel, release_id, outcome, text) VALUES (?, ?, ?, ?, ?)"
        with self._open() as database:
            database.execute(sql, look)

    def look(self, channel: str) -> Look | None:
        """What the reports said last."""
        sql = "SELECT at, channel, release_id, outcome, text FROM looks WHERE channel = ?"
        with self._open() as database:
            row = database.execute(sql, (channel,)).fetchone()
            return Look(*row) if row else None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=5.0)) as database, database:
                database.execute("PRAGMA synchronous=FULL")
                database.executescript(_TABLES)
                yield database
        except sqlite3.Error as problem:
            raise OperatorError(
                f"{self.path} cannot be used ({problem}): free space, or move it away; the rollout goes on without it"
            ) from None


def now() -> str:
    """This moment as RFC 3339 in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
