"""What became of each version that an alias was set on: one attempt a (version, channel), moving through its states.

    pending ──► gated ──► compiled ──► verified ──► signed ──► released ──► withdrawn
       │          │          │            │
       └──────────┴──────────┴────────────┴──► refused, or superseded when the alias went elsewhere

A version that was released before goes from pending to verified at once. Every move is written with its time and reason
before anything that follows from it is done; doing it is for service.py, which goes on from the state it finds.
"""

import datetime
import enum
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from pipelines.release.database import Database
from serving.contracts.releases import GateResult, Override

log = logging.getLogger(__name__)


class State(enum.StrEnum):
    """Where an attempt is."""

    PENDING = "pending"  # the alias was seen; nothing is judged yet
    GATED = "gated"  # it passed the gates on metrics and lineage
    COMPILED = "compiled"  # an engine for each target lies in staging, measured
    VERIFIED = "verified"  # the engines passed theirs; may be signed
    SIGNED = "signed"  # published: robots take it; MLflow is not told yet
    RELEASED = "released"
    REFUSED = "refused"
    SUPERSEDED = "superseded"  # the alias, or the gates, changed before it was signed
    WITHDRAWN = "withdrawn"  # was released and must not run any more


UNSIGNED = (State.PENDING, State.GATED, State.COMPILED, State.VERIFIED)
UNDER_WAY = (*UNSIGNED, State.SIGNED)
_LEAVE = (State.REFUSED, State.SUPERSEDED)
MOVES: dict[State, tuple[State, ...]] = {
    State.PENDING: (State.GATED, State.VERIFIED, *_LEAVE),
    State.GATED: (State.COMPILED, *_LEAVE),
    State.COMPILED: (State.VERIFIED, *_LEAVE),
    State.VERIFIED: (State.SIGNED, *_LEAVE),
    State.SIGNED: (State.RELEASED,),
    State.RELEASED: (State.WITHDRAWN,),
    State.REFUSED: (),
    State.SUPERSEDED: (),
    State.WITHDRAWN: (),
}


class Waiting(Exception):
    """An attempt cannot go on yet, such as for an engine that a robot has to build; the message says for what."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to release a version on a channel."""

    id: int
    channel: str
    version: str
    release_id: str  # empty where the version has no digest
    onnx_sha256: str
    targets: list[str]
    limits: str  # gates and overrides in force when it began, as text
    change_id: int  # of the alias, which it answers
    state: State
    reason: str
    gates: list[GateResult]
    overrides: list[Override]
    sequence: int | None  # of the channel, once it is signed
    told: bool  # MLflow knows the outcome
    begun_at: str  # RFC 3339, UTC
    changed_at: str


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A transition."""

    state: str
    at: str  # RFC 3339, UTC
    reason: str


_JSON = ("targets", "gates", "overrides")


class Journal:
    """The attempts in a release database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        channel: str,
        version: str,
        release_id: str,
        onnx_sha256: str,
        targets: list[str],
        limits: str,
        change: int,
    ) -> Attempt:
        """A new attempt in the state pending.

        Raises:
            sqlite3.IntegrityError: another attempt is under way on the channel.
        """
        now = utc_now()
        with self._database.changing() as db:
            cursor = db.execute(
                "INSERT INTO attempt (channel, version, release_id, onnx_sha256, targets, limits, change_id, state,"
                " begun_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?)",
                (channel, version, release_id, onnx_sha256, json.dumps(targets), limits, change, now, now),
            )
            assert cursor.lastrowid is not None
            _note(db, cursor.lastrowid, State.PENDING, now, "")
            return self._one(cursor.lastrowid)

    def move(self, attempt: Attempt, state: State, reason: str = "", **fields: Any) -> Attempt:
        """Moves an attempt on, with what is known now.

        Args:
            fields: `gates`, `overrides` or `sequence`.

        Raises:
            ValueError: no such move exists.
            RuntimeError: somebody else has moved it.
        """
        if state not in MOVES[attempt.state]:
            raise ValueError(f"an attempt does not go from {attempt.state} to {state}")
        now = utc_now()
        columns = {name: _encoded(name, value) for name, value in fields.items()}
        columns |= {"state": state.value, "reason": reason, "changed_at": now, "told": int(state is State.RELEASED)}
        with self._database.changing() as db:
            cursor = db.execute(
                f"UPDATE attempt SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ? AND state = ?",
                (*columns.values(), attempt.id, attempt.state.value),
            )
            if cursor.rowcount != 1:
                raise RuntimeError(f"attempt {attempt.id} is no longer {attempt.state}")
            _note(db, attempt.id, state, now, reason)
            return self._one(attempt.id)

    def told(self, attempt: Attempt) -> None:
        """MLflow knows the outcome of this attempt."""
        with self._database.changing() as db:
            db.execute("UPDATE attempt SET told = 1 WHERE id = ? AND state = ?", (attempt.id, attempt.state.value))

    def withdraw(self, release_id: str, reason: str) -> list[Attempt]:
        """Marks a release as withdrawn wherever it was released; the service tells MLflow and releases it no more."""
        sql = "SELECT * FROM attempt WHERE release_id = ? AND state = 'released'"
        found = [_attempt(row) for row in self._database.rows(sql, release_id)]
        if not found:
            return []
        with self._database.changing():
            return [self.move(one, State.WITHDRAWN, reason) for one in found]

    def withdrawn(self, release_id: str) -> str | None:
        """Why a release was withdrawn; None when it was not."""
        sql = "SELECT reason FROM attempt WHERE release_id = ? AND state = 'withdrawn' ORDER BY id DESC LIMIT 1"
        found = self._database.rows(sql, release_id)
        return str(found[0]["reason"]) if found else None

    def released(self, channel: str, release_id: str) -> Attempt | None:
        """The newest attempt that released this on a channel."""
        sql = (
            "SELECT * FROM attempt WHERE channel = ? AND release_id = ? AND state = 'released' ORDER BY id DESC LIMIT 1"
        )
        found = self._database.rows(sql, channel, release_id)
        return _attempt(found[0]) if found else None

    def under_way(self, channel: str) -> Attempt | None:
        """The attempt of a channel that is not at its end."""
        states = ", ".join(f"'{state}'" for state in UNDER_WAY)
        found = self._database.rows(f"SELECT * FROM attempt WHERE channel = ? AND state IN ({states})", channel)
        return _attempt(found[0]) if found else None

    def last(self, channel: str, version: str) -> Attempt | None:
        """The newest attempt of a version on a channel."""
        sql = "SELECT * FROM attempt WHERE channel = ? AND version = ? ORDER BY id DESC LIMIT 1"
        found = self._database.rows(sql, channel, version)
        return _attempt(found[0]) if found else None

    def last_of(self, version: str) -> Attempt | None:
        """The newest attempt of a version on any channel that knew its digest."""
        sql = "SELECT * FROM attempt WHERE version = ? AND onnx_sha256 != '' ORDER BY id DESC LIMIT 1"
        found = self._database.rows(sql, version)
        return _attempt(found[0]) if found else None

    def untold(self) -> list[Attempt]:
        """Attempts at their end of which MLflow has not been told, oldest first."""
        sql = "SELECT * FROM attempt WHERE told = 0 AND state IN ('refused', 'superseded', 'withdrawn') ORDER BY id"
        return [_attempt(row) for row in self._database.rows(sql)]

    def attempts(self) -> list[Attempt]:
        """All of them, oldest first."""
        return [_attempt(row) for row in self._database.rows("SELECT * FROM attempt ORDER BY id")]

    def moves(self, attempt: Attempt) -> list[Move]:
        """What an attempt went through, oldest first."""
        sql = "SELECT state, at, reason FROM transition WHERE attempt_id = ? ORDER BY id"
        return [Move(**dict(row)) for row in self._database.rows(sql, attempt.id)]

    def _one(self, attempt_id: int) -> Attempt:
        return _attempt(self._database.rows("SELECT * FROM attempt WHERE id = ?", attempt_id)[0])


class _OldEntry(msgspec.Struct):
    issued_at: str
    channel: str
    version: str
    status: str
    release_id: str = ""
    sequence: int | None = None
    reason: str = ""


def import_history(database: Database, path: Path) -> int:
    """Takes the decisions of a `history.json`, which was kept before there was a database, and renames that file.

    Returns:
        How many there were; 0 when there is no such file, or it was taken before.

    Raises:
        OSError: the file cannot be read or renamed.
    """
    if not path.exists():
        return 0
    taken = 0
    if not database.rows("SELECT 1 FROM imported WHERE path = ?", path.name):
        try:
            entries = msgspec.json.decode(path.read_bytes(), type=list[_OldEntry])
        except msgspec.DecodeError as problem:
            log.error("%s is damaged (%s): its decisions are not taken over, and it is left where it is", path, problem)
            return 0
        with database.changing() as db:
            for entry in entries:
                taken += _import(db, entry)
            db.execute("INSERT INTO imported (path) VALUES (?)", (path.name,))
        log.info("%d decisions of %s are in the database now", taken, path)
    path.rename(path.with_suffix(".json.imported"))
    return taken


def _import(db: sqlite3.Connection, entry: _OldEntry) -> int:
    state = State.RELEASED if entry.status == "released" else State.REFUSED
    cursor = db.execute(
        "INSERT OR IGNORE INTO attempt (channel, version, release_id, onnx_sha256, targets, limits, change_id, state,"
        " reason, sequence, told, begun_at, changed_at) VALUES (?, ?, ?, '', '[]', '', 0, ?, ?, ?, 1, ?, ?)",
        (
            *(entry.channel, entry.version, entry.release_id, state.value, entry.reason, entry.sequence),
            *(entry.issued_at, entry.issued_at),
        ),
    )
    if cursor.rowcount == 1 and cursor.lastrowid is not None:
        _note(db, cursor.lastrowid, state, entry.issued_at, entry.reason)
        return 1
    return 0


def _note(db: sqlite3.Connection, attempt_id: int, state: State, at: str, reason: str) -> None:
    values = (attempt_id, state.value, at, reason)
    db.execute("INSERT INTO transition (attempt_id, state, at, reason) VALUES (?, ?, ?, ?)", values)


def _encoded(name: str, value: Any) -> Any:
    return msgspec.json.encode(value).decode() if name in _JSON else value


def _attempt(row: sqlite3.Row) -> Attempt:
    values = {name: json.loads(row[name]) if name in _JSON else row[name] for name in row.keys()}  # noqa: SIM118
    return msgspec.convert(values | {"told": bool(row["told"])}, Attempt)


def utc_now() -> str:
    """Now, RFC 3339 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
